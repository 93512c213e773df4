"""What a certificate says, and the process that turns it into a PDF.

Owns the facts that are printed and the worker processes that print them (``paper`` holds the page itself).
The API server never imports the PDF libraries: they are heavy, they hold the interpreter for a whole page,
and nothing but killing their process stops them for certain.
"""

import asyncio
import os
import pickle
import struct
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from datetime import date
from typing import Literal, cast

import structlog

log = structlog.get_logger(__name__)

# The worker's answer: whether it is a page, and how many bytes follow.
ANSWER = struct.Struct(">?I")

# Importing the PDF libraries takes a second here; a cold disk may need many.
START_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """Everything that is printed, already in the certificate's language.

    ``patient_name`` is joined in the order it is printed in, or is the code name of anonymous treatment;
    ``purpose`` is the whole phrase («для предъявления по месту работы»). An absent value has no line.
    """

    language: Literal["ru", "en"]
    organisation: str
    address: str
    number: str
    issued_on: date
    patient_name: str
    birth_date: date | None
    checked_in_on: date
    checked_out_on: date
    bed_days: int
    outcome: str
    diagnosis: str | None
    doctor_name: str
    doctor_position: str | None
    purpose: str | None
    verification_url: str


class RenderFailed(Exception):
    """No page was made; the message says why and quotes nothing of the certificate."""


class Unprintable(RenderFailed):
    """The facts hold a character that no font of the certificate has: a box is no part of a name."""


class RenderBusy(Exception):
    """As many certificates are waiting as may wait: ask again in a few seconds."""


class Renderer:
    """Certificates are rendered in processes of their own, one at a time in each.

    A worker starts when it is first needed and stays warm. One that exceeds ``timeout_s`` (from the moment
    it is handed the facts) or whose caller went away is killed, and the next certificate starts another.
    At most ``queue`` callers wait for a worker.
    """

    def __init__(self, *, timeout_s: float = 5.0, workers: int = 1, queue: int = 32) -> None:
        self._timeout_s = timeout_s
        self._workers = workers
        self._places = workers + queue
        self._closed = False
        # One entry per worker that may run: an idle process, or None where there is none yet. Last in,
        # first out, so that a warm one is preferred.
        self._idle: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()
        for _ in range(workers):
            self._idle.put_nowait(None)

    async def render(self, facts: CertificateFacts) -> bytes:
        """The certificate as a PDF of one page.

        Raises RenderBusy, Unprintable, and RenderFailed for everything else that kept the page from being
        made, a closed renderer among it.
        """
        if self._places == 0:
            raise RenderBusy("too many certificates are waiting")
        self._places -= 1
        try:
            worker = await self._idle.get()
            try:
                if self._closed:
                    raise RenderFailed("the renderer is closed")
                # Also the one that was killed, here or by somebody else, since the last certificate.
                if worker is None or worker.returncode is not None:
                    worker = await _start()
                return await _ask(worker, pickle.dumps(facts), self._timeout_s)
            finally:
                self._idle.put_nowait(worker)
        except RenderFailed as failure:
            log.warning("certificate_render_failed", reason=str(failure))
            raise
        finally:
            self._places += 1

    async def close(self) -> None:
        """No worker is left; certificates in the making are finished, the waiting ones fail."""
        self._closed = True
        for worker in [await self._idle.get() for _ in range(self._workers)]:
            if worker is not None:
                await _kill(worker)
            self._idle.put_nowait(None)


async def _start() -> Process:
    """A worker that has imported what it needs."""
    # It handles other people's text, so it knows no secret; it finds exactly the modules that we run.
    environ = {k: v for k, v in os.environ.items() if k != "DATABASE_URL" and not k.startswith("EKOYKA_")}
    environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = (sys.executable, "-P", "-m", "ekoyka.certificates.paper")
    try:
        # In a session of its own, because Ctrl-C goes to the terminal's whole group and is ours to act on:
        # the worker ends when we do, however we do, because its standard input ends.
        worker = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, env=environ, start_new_session=True
        )
    except OSError as error:
        raise RenderFailed("no worker could be started") from error
    await _ask(worker, b"", START_LIMIT_S)
    return worker


async def _ask(worker: Process, question: bytes, timeout_s: float) -> bytes:
    """The worker's answer to this question; a worker that gave none is dead, whatever the reason."""
    questions, answers = cast(asyncio.StreamWriter, worker.stdin), cast(asyncio.StreamReader, worker.stdout)
    answered = False
    try:
        async with asyncio.timeout(timeout_s):
            questions.write(question)
            await questions.drain()
            made, length = ANSWER.unpack(await answers.readexactly(ANSWER.size))
            answer = await answers.readexactly(length)
        answered = True
    except TimeoutError as error:
        raise RenderFailed(f"no answer within {timeout_s:g} s") from error
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise RenderFailed("the worker ended") from error
    finally:
        # Also when our caller was cancelled: the late answer would be taken for the next certificate's.
        if not answered:
            await _kill(worker)
    if made:
        return answer
    reason = answer.decode()
    raise Unprintable(reason) if reason == Unprintable.__name__ else RenderFailed(reason)


async def _kill(worker: Process) -> None:
    if worker.returncode is None:
        worker.kill()
    await worker.wait()
