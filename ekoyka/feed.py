"""The feed: events written with the change they tell of, and carried to every process after the commit.

`publish` writes into the outbox inside the change's transaction. One connection per process listens; a
follower of a topic is woken and reads the outbox from its own cursor on, so that a lost notification can
delay an event but never lose it. Knows no domain and authorises nothing: whoever sends an event on does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson
import structlog
from sqlalchemy import BigInteger, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel

from ekoyka.columns import instant
from ekoyka.database import Database, connect

log = structlog.get_logger(__name__)


class FeedTopic(SQLModel, table=True):
    """The last cursor of a topic; its row lock orders the topic's writers by commit."""

    __tablename__ = "feed_topic"
    topic: str = Field(primary_key=True)
    last_cursor: int = Field(sa_type=BigInteger)


class FeedEvent(SQLModel, table=True):
    """One published event: cursors of a topic have no gaps and grow in the order of commits."""

    __tablename__ = "feed_event"
    __table_args__ = (Index("ix_feed_event_occurred_at", "occurred_at"),)
    topic: str = Field(primary_key=True)
    cursor: int = Field(sa_type=BigInteger, primary_key=True)
    payload: dict[str, Any] = Field(sa_type=JSONB)
    occurred_at: datetime = instant(now=True)


CHANNEL = "ekoyka"

# The upsert's row lock is held until the commit: a topic's next writer waits, so cursors have no gaps and
# grow in the order of commits. Readers may then simply go by cursor.
_PUBLISH = text(
    """
    WITH counted AS (
        INSERT INTO feed_topic (topic, last_cursor) VALUES (:topic, :count)
        ON CONFLICT (topic) DO UPDATE SET last_cursor = feed_topic.last_cursor + :count
        RETURNING last_cursor
    ), written AS (
        INSERT INTO feed_event (topic, cursor, payload, occurred_at)
        SELECT :topic, counted.last_cursor - :count + item.place, item.payload, clock_timestamp()
        FROM counted, jsonb_array_elements(CAST(:payloads AS jsonb)) WITH ORDINALITY AS item (payload, place)
    )
    SELECT pg_notify(:channel, :topic || ' ' || last_cursor) FROM counted
    """
)


async def publish(session: AsyncSession, topic: str, *payloads: dict[str, Any]) -> None:
    """The events stand in the outbox and listeners are told, both when the transaction commits.

    Call it last in an operation: it takes the topic's row lock, after all others. The notification
    carries the topic and cursor alone; payloads never leave the database's tables that way.
    """
    await session.flush()
    await session.execute(
        _PUBLISH,
        {
            "topic": topic,
            "count": len(payloads),
            "payloads": orjson.dumps(payloads).decode(),
            "channel": CHANNEL,
        },
    )


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a topic, as it was written."""

    cursor: int
    payload: dict[str, Any]
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A follower's present state must be read afresh: at the beginning, after a cut, or when too far behind."""


class Watch:
    """A follower's alarm for one topic."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._cut = False

    def ring(self, *, cut: bool = False) -> None:
        """Something happened, or (``cut``) may have happened unheard."""
        self._cut |= cut
        self._rung.set()

    async def wait(self) -> bool:
        """Waits for the next ring; whether the listening connection was cut since the last."""
        await self._rung.wait()
        self._rung.clear()
        cut, self._cut = self._cut, False
        return cut


_BATCH = 500
_EVENTS = (
    "SELECT cursor, payload::text AS payload, occurred_at FROM feed_event "
    f"WHERE topic = $1 AND cursor > $2 ORDER BY cursor LIMIT {_BATCH}"
)
# The last cursor, and whether the outbox still holds all that came after the follower's.
_PLACE = (
    "SELECT coalesce((SELECT last_cursor FROM feed_topic WHERE topic = $1), 0) AS last, "
    "coalesce((SELECT min(cursor) FROM feed_event WHERE topic = $1), 1) AS first"
)


class Feed:
    """One process's listener and its followers."""

    def __init__(
        self, database: Database, *, heartbeat_s: float = 5.0, retry_s: tuple[float, float] = (0.2, 5.0)
    ) -> None:
        self._database = database
        self._heartbeat_s = heartbeat_s
        self._retry_s = retry_s
        self._watches: defaultdict[str, set[Watch]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self.connected = False

    async def __aenter__(self) -> Feed:
        self._task = asyncio.create_task(self._listen(), name="feed-listener")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @contextlib.contextmanager
    def watch(self, topic: str) -> Iterator[Watch]:
        """An alarm that rings for the topic while the block lasts."""
        watch = Watch()
        self._watches[topic].add(watch)
        try:
            yield watch
        finally:
            self._watches[topic].discard(watch)
            if not self._watches[topic]:
                del self._watches[topic]

    async def follow(self, topic: str, after: int | None) -> AsyncGenerator[Snapshot | Event, int]:
        """The topic's events in order, without end.

        A `Snapshot` comes first when ``after`` is None or when the outbox no longer holds all that came
        after it, and again after the listening connection was cut. Whoever reads the present state for it
        sends back (`asend`) the topic's cursor in that state, from which the events go on.
        Raises `DatabaseUnavailable`.
        """
        with self.watch(topic) as watch:
            cursor = after
            if after is not None:
                place = (await self._database.fetch(_PLACE, topic))[0]
                if not place["first"] - 1 <= after <= place["last"]:
                    cursor = None
            due = cursor is None
            while True:
                while cursor is not None and (rows := await self._database.fetch(_EVENTS, topic, cursor)):
                    for row in rows:
                        cursor = row["cursor"]
                        yield Event(row["cursor"], orjson.loads(row["payload"]), row["occurred_at"])
                if due:
                    cursor = yield Snapshot()
                    due = False
                else:
                    due = await watch.wait()

    async def _listen(self) -> None:
        pause, longest = self._retry_s
        while True:
            connection: asyncpg.Connection[asyncpg.Record] | None = None
            try:
                connection = await connect(self._database.url, self._database.settings, "ekoyka feed")
                await connection.add_listener(CHANNEL, self._hear)
                self.connected, pause = True, self._retry_s[0]
                log.info("feed_connected")
                # Whatever was committed since the last connection was lost went unheard.
                self._ring_all()
                lost = asyncio.Event()
                connection.add_termination_listener(lambda _, lost=lost: lost.set())
                while not lost.is_set():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(lost.wait(), self._heartbeat_s)
                    if not lost.is_set():
                        await asyncio.wait_for(connection.execute("SELECT 1"), self._heartbeat_s)
                log.warning("feed_cut", reason="closed")
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("feed_cut", reason=type(error).__name__)
            finally:
                self.connected = False
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        for watch in self._watches.get(str(payload).rpartition(" ")[0], ()):
            watch.ring()

    def _ring_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.ring(cut=True)


async def prune(database: Database, *, keep_s: int) -> None:
    """Events older than this are gone from the outbox; a follower that far behind gets a snapshot."""
    await database.fetch(
        "DELETE FROM feed_event WHERE occurred_at < clock_timestamp() - make_interval(secs => $1)",
        float(keep_s),
    )


def lag_s(event: Event) -> float:
    """Seconds since the event was written."""
    return (datetime.now(UTC) - event.occurred_at).total_seconds()
