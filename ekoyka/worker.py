"""The worker: what is done from time to time, on PostgreSQL's own queue (procrastinate).

However many workers there are, a job is put into the queue once for each time that it is due, and waits there at most
once. Whatever a job does it does exactly once, too, by the keys of what it writes: one that is cut off is done again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from procrastinate import App, JobContext, PsycopgConnector, RetryStrategy
from procrastinate.manager import JobManager
from psycopg import AsyncConnection, OperationalError
from psycopg.pq import TransactionStatus

from ekoyka.database import SERVER_ROLE, Database
from ekoyka.observability import where
from ekoyka.outpatient import line, notifications, slots
from ekoyka.settings import Settings

log = structlog.get_logger(__name__)

# How long a job may take to end when the worker is told to stop; then it is cut off, and put back into the queue.
GRACE_S = 10.0
# One for jobs, one for heartbeats and the like; a third one listens.
CONNECTIONS = 3
_PAUSE_S = 2.0
# None of the queue's own statements takes so long; one without an answer has nobody at its other end.
SILENCE_S = 5.0
_KEEP_FAILED_H = 7 * 24
Work = Callable[[], Awaitable[dict[str, int]]]
"""Something to do; how much of what was done, for the log."""


class JobFailed(Exception):
    """A job did not end well; the log says why, in words that hold no value of the database's."""


class QueueConnection(AsyncConnection[Any]):
    """A connection of the queue's that does not wait for ever for one that has gone away without a word."""

    async def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        try:
            return await super().wait(gen, interval, SILENCE_S if timeout is None else timeout)
        except OperationalError:
            # Whoever listens is told that there was nothing; whoever asked can use the connection no more.
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()
            raise


class Worker:
    """One process's worker."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    async def run(self) -> None:
        """Works until it is cancelled, and ends in order then; a database that goes away is waited for."""
        while True:
            try:
                # The queue's pool would wait longer and longer between its attempts.
                await self._database.fetch_aside("SELECT")
                queue = self._queue()
                async with queue.open_async():
                    log.info("worker_started")
                    await queue.run_worker_async(
                        delete_jobs="successful",
                        shutdown_graceful_timeout=GRACE_S,
                        install_signal_handlers=False,
                    )
                log.warning("worker_cut", kind="stopped")
            except Exception as error:  # whatever it was, and the drivers know many: it is tried again
                log.warning("worker_cut", kind=type(error).__name__)
            await asyncio.sleep(_PAUSE_S)

    def _queue(self) -> App:
        """The queue, with all that is done periodically; the last of six fields of a time are seconds."""
        queue = App(
            connector=PsycopgConnector(
                conninfo=self._database.url,
                min_size=1,
                max_size=CONNECTIONS - 1,
                timeout=self._settings.pool_timeout_s,
                connection_class=QueueConnection,
                kwargs={
                    "application_name": "ekoyka worker",
                    "options": f"-c role={SERVER_ROLE}",
                    "connect_timeout": max(2, int(self._settings.connect_timeout_s)),
                },
            )
        )
        self._add(queue, "slots_of_the_day", "* * * * *", self._slots_of_the_day)
        self._add(queue, "slots", "7 * * * *", self._slots)
        self._add(queue, "lapse", "* * * * * */10", self._lapse)
        self._add(queue, "remind", "* * * * *", self._remind)
        self._add(queue, "tidy", "17 3 * * *", self._tidy)

        @queue.periodic(cron="*/2 * * * *")
        @queue.task(name="revive", queueing_lock="revive", pass_context=True)
        async def revive(context: JobContext, timestamp: int) -> None:
            await _revive(context.app.job_manager)

        return queue

    def _add(self, queue: App, name: str, cron: str, work: Work) -> None:
        """The work is done at these times (UTC)."""

        async def job(timestamp: int) -> None:
            await _told(name, work)

        retry = RetryStrategy(max_attempts=3, exponential_wait=2)
        queue.periodic(cron=cron)(queue.task(name=name, queueing_lock=name, retry=retry)(job))

    async def _slots_of_the_day(self) -> dict[str, int]:
        """Where a day has begun, and where slots were never made, they are made as far as the horizon."""
        done = await slots.make_all(self._database, due=True)
        return {"made": done.made, "withdrawn": done.withdrawn}

    async def _slots(self) -> dict[str, int]:
        """All slots are what the rules give: what was in somebody's hands before is looked at again."""
        done = await slots.make_all(self._database)
        return {"made": done.made, "withdrawn": done.withdrawn}

    async def _lapse(self) -> dict[str, int]:
        """Holds and offers whose time is up are over, and freed slots are offered to who waits."""
        lapsed, offered = await line.lapse(self._database, offer_s=self._settings.offer_s)
        return {"lapsed": lapsed, "offered": offered}

    async def _remind(self) -> dict[str, int]:
        return {"reminded": await notifications.remind(self._database)}

    async def _tidy(self) -> dict[str, int]:
        await slots.forget_withdrawn(self._database)
        return {}


async def _revive(jobs: JobManager) -> None:
    """Jobs of workers that are no more are in the queue again, and old failures forgotten."""
    for job in await jobs.get_stalled_jobs():
        await jobs.retry_job(job)
    await jobs.delete_old_jobs(
        nb_hours=_KEEP_FAILED_H, include_failed=True, include_cancelled=True, include_aborted=True
    )


async def _told(name: str, work: Work) -> None:
    """The work is done and the log told of it. Raises `JobFailed`: the error itself may hold values of rows."""
    try:
        done = await work()
    except Exception as error:  # whatever it is, the job is tried again
        log.error("job_failed", job=name, **where(error))
        raise JobFailed(name) from None
    if any(done.values()):
        log.info("job_done", job=name, **done)
