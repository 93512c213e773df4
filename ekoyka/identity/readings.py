"""The access log's entries of reads: who was shown whose record, written before it is shown.

PostgreSQL marks in an answer whose records it holds (`graph.text.marked`), so that nothing is asked twice. Reads
at the same time are written down together, by one statement for all of them, and a set of patients that is read
again and again, as a ward's board is, is kept once. Entries of reads wait for no disk: when PostgreSQL itself
crashes, those of the last half second may be lost with it. Entries of changes are committed with the change.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ekoyka.cache import Cache
from ekoyka.database import Database
from ekoyka.identity.actors import Actor

SETS_KNOWN = 1000

_WRITE = """
WITH sets AS (
    INSERT INTO access_set (digest, patients)
    SELECT digest, numbers::bigint[] FROM unnest($1::bytea[], $2::text[]) given (digest, numbers)
    ORDER BY digest ON CONFLICT DO NOTHING
)
INSERT INTO access_entry
    (account_id, role, action, field, patient_id, patients, dispensary_id, request_id, address)
SELECT account_id, role, 'read', field, patient_id, patients, dispensary_id, request_id, address
FROM unnest($3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bytea[], $8::bigint[], $9::text[], $10::text[])
    entry (account_id, role, field, patient_id, patients, dispensary_id, request_id, address)
"""


@dataclass(frozen=True, slots=True)
class Reader:
    """Who is shown something; nobody in particular where no account is named."""

    account_id: int | None
    role: str | None
    dispensary_id: int | None
    request_id: str | None
    address: str | None


def reader_of(actor: Actor | None, *, request_id: str | None, address: str | None) -> Reader:
    """The actor, or whoever asks without having signed in, as a reader."""
    if actor is None:
        return Reader(None, None, None, request_id, address)
    return Reader(actor.account_id, actor.acting_as.value, actor.place, request_id, address)


_Entry = tuple[str, int | None, bytes | None, Reader]


class Readings:
    """One process's reads on their way into the access log."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entries: list[_Entry] = []
        self._sets: dict[bytes, bytes] = {}
        self._written: list[asyncio.Future[None]] = []
        # By the patients' numbers as an answer has them: the digests of sets that are in the database.
        self._known: Cache[bytes, bytes] = Cache(SETS_KNOWN)
        self._task: asyncio.Task[None] | None = None

    async def note(self, field: str, patients: Sequence[bytes], readers: Iterable[Reader]) -> None:
        """It stands in the log that these patients' records are shown to the readers by this root field.

        ``patients`` are their keys as text, each as often as it comes, empty where there is nobody.
        Raises `DatabaseUnavailable`: then nothing is shown.
        """
        whom, together = self._whom(patients)
        self._entries += [(field, whom, together, reader) for reader in readers]
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        self._written.append(written)
        if self._task is None:
            # An empty context: what is written is of many requests.
            self._task = loop.create_task(self._write(), name="readings", context=contextvars.Context())
        await written

    def _whom(self, patients: Sequence[bytes]) -> tuple[int | None, bytes | None]:
        numbers = b",".join(patients)
        digest = self._known.get(numbers)
        if digest is not None:
            return None, digest
        each = sorted({number for number in patients if number})
        if len(each) < 2:
            return (int(each[0]) if each else None), None
        listed = b",".join(each)
        digest = hashlib.sha256(listed).digest()
        self._sets[digest] = listed
        # Whoever counts on it is written with it, or after it.
        self._known.put(numbers, digest)
        return None, digest

    async def _write(self) -> None:
        """All that is waiting is written, together, until there is nothing."""
        try:
            while self._written:
                entries, self._entries = self._entries, []
                written, self._written = self._written, []
                sets, self._sets = self._sets, {}
                try:
                    await self._database.write_down(
                        _WRITE,
                        list(sets),
                        [f"{{{listed.decode()}}}" for listed in sets.values()],
                        [reader.account_id for *_, reader in entries],
                        [reader.role for *_, reader in entries],
                        [field for field, *_ in entries],
                        [whom for _, whom, _, _ in entries],
                        [together for _, _, together, _ in entries],
                        [reader.dispensary_id for *_, reader in entries],
                        [reader.request_id for *_, reader in entries],
                        [reader.address for *_, reader in entries],
                    )
                except Exception as error:  # whatever it is: whoever waits is told, and shows nothing
                    # Who came meanwhile may count on a set that was not written either.
                    written += self._written
                    self._entries, self._written, self._sets = [], [], {}
                    self._known = Cache(SETS_KNOWN)
                    for waiting in written:
                        if not waiting.done():
                            waiting.set_exception(error)
                else:
                    for waiting in written:
                        if not waiting.done():
                            waiting.set_result(None)
        finally:
            self._task = None
