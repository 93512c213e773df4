"""The feed: events written with the change they tell of, and carried to every process after the commit.

`publish` writes into the outbox inside the change's transaction, and the topic's new cursor is told when that
is committed. One connection per process listens and rings for whoever follows a topic; followers read the
outbox from their own cursors on, and the listener looks at every heartbeat what it has not been told, so that a
lost notification can delay an event but never lose it. Knows no domain and authorises nothing: whoever sends
an event on does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from typing import Any

import asyncpg
import orjson
import structlog
from sqlalchemy import BigInteger, Index
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel

from ekoyka.columns import instant
from ekoyka.database import CHANNEL, NOTICES, Database, Row, Statement, connect
from ekoyka.silence import PATIENCE_S

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


# The upsert's row lock is held until the commit: a topic's next writer waits, so cursors have no gaps and
# grow in the order of commits. Readers may then simply go by cursor.
def publishing(events: str) -> str:
    """The last CTEs of a statement that publishes what its CTE ``events`` holds: (topic, place, payload), told in
    the order of their places. A `Publication` selects `PUBLISHED` FROM counted.

    The topics' rows are locked in the order of their names, when all events are known: they depend on whatever
    must be locked before. The foreign keys of rows that the statement writes are checked at its end; nobody who
    holds what they wait for waits for a topic.
    """
    return f"""counted AS (
        INSERT INTO feed_topic (topic, last_cursor)
        SELECT topic, count(*) FROM {events} GROUP BY topic ORDER BY topic
        ON CONFLICT (topic) DO UPDATE SET last_cursor = feed_topic.last_cursor + excluded.last_cursor
        RETURNING topic, last_cursor
    ), written AS (
        INSERT INTO feed_event (topic, cursor, payload, occurred_at)
        SELECT topic,
            last_cursor - count(*) OVER (PARTITION BY topic) + row_number() OVER (PARTITION BY topic ORDER BY place),
            payload, clock_timestamp()
        FROM counted JOIN {events} USING (topic)
    )"""


PUBLISHED = "counted.topic, counted.last_cursor"


class Publication(Statement):
    """A statement that publishes; topics and cursors alone are told when the transaction is committed.

    Payloads never leave the database's tables that way. What else it selects comes once for each topic.
    """

    async def rows(self, session: AsyncSession, **values: Any) -> list[Row]:
        rows = await super().rows(session, **values)
        notices = session.info.setdefault(NOTICES, {})
        for row in rows:
            if row.topic is not None:  # nothing was to be told
                notices[row.topic] = row.last_cursor
        return rows

    async def row(self, session: AsyncSession, **values: Any) -> Row:
        """What it selects beside the topics."""
        return (await self.rows(session, **values))[0]


_PUBLISH = Publication(
    f"""
    WITH event AS (
        SELECT CAST(:topic AS text) AS topic, place, payload
        FROM jsonb_array_elements(CAST(:payloads AS jsonb)) WITH ORDINALITY AS item (payload, place)
    ), {publishing("event")}
    SELECT {PUBLISHED} FROM counted
    """
)


async def publish(session: AsyncSession, topic: str, *payloads: dict[str, Any]) -> None:
    """The events stand in the outbox when the transaction commits, and listeners are told then.

    Call it last in an operation: it takes the topic's row lock, after all others.
    """
    await _PUBLISH.rows(session, topic=topic, payloads=orjson.dumps(payloads).decode())


# One read tells of no more events than this; what is left comes with the next.
BATCH = 500


def place(topic: str, since: str, upto: str) -> str:
    """SQL of the cursor that a read of the topic reaches, given SQL of where it begins and of its limit.

    Either may be NULL: a read from nowhere is one of the present state, and reaches the topic's last cursor.
    """
    return (
        f"least(coalesce((SELECT f.last_cursor FROM feed_topic f WHERE f.topic = {topic}), 0), "
        f"{since} + {BATCH}, {upto})"
    )


def events(topic: str, since: str, upto: str) -> str:
    """A SELECT of the topic's events that such a read tells of; none where it is of the present state."""
    return (
        f"(SELECT f.* FROM feed_event f WHERE f.topic = {topic} AND f.cursor > {since} "
        f"AND f.cursor <= {place(topic, since, upto)})"
    )


Ring = Callable[[int | None], None]
"""Is called with the topic's cursor that was heard of, or with None where something may have gone unheard."""


class Feed:
    """One process's listener and its followers."""

    def __init__(
        self,
        database: Database,
        *,
        heartbeat_s: float = 1.0,
        patience_s: float = PATIENCE_S,
        retry_s: tuple[float, float] = (0.1, 1.0),
    ) -> None:
        self._database = database
        self._heartbeat_s = heartbeat_s
        self._patience_s = patience_s
        self._retry_s = retry_s
        self._rings: defaultdict[str, dict[Ring, None]] = defaultdict(dict)
        self._heard: dict[str, int] = {}
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

    def follow(self, topic: str, ring: Ring) -> None:
        """From now on the ring is called for the topic, in the event loop; it only takes note."""
        self._rings[topic][ring] = None

    def leave(self, topic: str, ring: Ring) -> None:
        """The ring is not called any more."""
        self._rings[topic].pop(ring, None)
        if not self._rings[topic]:
            del self._rings[topic]
            self._heard.pop(topic, None)

    async def _listen(self) -> None:
        pause, longest = self._retry_s
        while True:
            connection: asyncpg.Connection[asyncpg.Record] | None = None
            try:
                async with asyncio.timeout(self._patience_s):
                    connection = await connect(self._database.url, self._database.settings, "ekoyka feed")
                    await connection.add_listener(CHANNEL, self._hear)
                self.connected, pause = True, self._retry_s[0]
                log.info("feed_connected")
                # Whatever was committed since the last connection was lost went unheard.
                self._ring_all()
                lost = asyncio.Event()
                connection.add_termination_listener(lambda _, lost=lost: lost.set())
                while not lost.is_set():
                    # Those that were there when the last one was lost may be lost as well.
                    await self._database.silence.listen(connection)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(lost.wait(), self._heartbeat_s)
                    if not lost.is_set():
                        await self._look(connection)
                log.warning("feed_cut", reason="closed")
            except Exception as error:  # whatever it was, and the driver knows many: it is tried again
                log.warning("feed_cut", reason=type(error).__name__)
            finally:
                self.connected = False
                self._database.silence.distrust()
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        topic, _, cursor = str(payload).rpartition(" ")
        if cursor.isdigit():
            self._ring(topic, int(cursor))

    async def _look(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """What whoever committed it could not tell, having died, is heard of here."""
        if not self._rings:  # and before the first migration there is nothing to look at
            await connection.execute("SELECT", timeout=self._patience_s)
            return
        for row in await connection.fetch(
            "SELECT topic, last_cursor FROM feed_topic WHERE topic = ANY($1::text[])",
            list(self._rings),
            timeout=self._patience_s,
        ):
            if row["last_cursor"] > self._heard.get(row["topic"], 0):
                self._ring(row["topic"], row["last_cursor"])

    def _ring(self, topic: str, cursor: int) -> None:
        if topic in self._rings:
            self._heard[topic] = max(cursor, self._heard.get(topic, 0))
            for ring in self._rings[topic]:
                ring(cursor)

    def _ring_all(self) -> None:
        for rings in self._rings.values():
            for ring in rings:
                ring(None)


async def prune(database: Database, *, keep_s: int) -> None:
    """Events older than this are gone from the outbox; a follower that far behind gets a snapshot."""
    await database.fetch(
        "DELETE FROM feed_event WHERE occurred_at < clock_timestamp() - make_interval(secs => $1)",
        float(keep_s),
    )
