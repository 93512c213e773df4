"""Watching: subscribers who ask the same thing are one group, which reads each event once for all of them.

A group follows its topic and keeps each member's cursor. When something was published, it reads, in one
statement and one snapshot of the database: the changes since that cursor, the state that they led to, and
which members' accounts are no longer what their tokens say. The answer's bytes go to every member, put
between its operation's id and a brace. Members who stand at different cursors, as after joining during a
burst, are read for one after the other, up to the same cursor, and are together from then on.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson
import structlog
from graphql import GraphQLError

from ekoyka.api.accounts import Account, Socket, dismiss
from ekoyka.api.outlets import text_frame
from ekoyka.api.presentation import OutOfSight, present
from ekoyka.database import Database, DatabaseUnavailable
from ekoyka.feed import BATCH, Feed
from ekoyka.graph.text import unmarked
from ekoyka.identity.queries import guard
from ekoyka.identity.readings import Readings
from ekoyka.observability import FEED_DROPPED, FEED_FRAMES, FEED_LAG, FEED_READS, SUBSCRIPTIONS

log = structlog.get_logger(__name__)

TOO_SLOW = 4413
# The shortest time from the beginning of one read to that of the next: what is published meanwhile is one event.
PAUSE_S = 0.02
_RETRY_S = (0.1, 1.0)
# So many frames are written before others get their turn.
_TURN = 256
# Frames are kept for so many different operation ids while one event is sent: most clients number alike.
_FRAMES_KEPT = 64


@dataclass(frozen=True, slots=True)
class Question:
    """What a subscription asks: SQL, and its parameters for the changes after one cursor and up to another."""

    topic: str
    field: str
    response_key: str
    sql: str
    bind: Callable[[int | None, int | None], list[Any]]

    def identity(self) -> tuple[str, str, str, str]:
        """Equal for those who are told the same."""
        return self.topic, self.response_key, self.sql, repr(self.bind(None, None))


@dataclass(frozen=True, slots=True)
class Reading:
    """One event as it was read: the JSON of the root field, and what the server needs to know of it.

    ``patients`` are those whose records it holds, by their keys. ``since`` is None for a snapshot. ``passed`` is
    the number of the topic's events up to the cursor, ``told`` of those that the event tells of, ``lag_s`` the
    age of the oldest. ``gone`` are the accounts that must not be told.
    """

    data: bytes
    patients: list[bytes]
    since: int | None
    cursor: int
    passed: int
    told: int
    lag_s: float
    gone: frozenset[Account]

    @property
    def whole(self) -> bool:
        """Whether the outbox still held all that happened since; cursors have no gaps."""
        return self.since is None or self.passed == self.cursor - self.since

    @property
    def tells(self) -> bool:
        """Whether there is something to send: a snapshot, or a change of what is watched."""
        return self.since is None or self.told > 0


class AccountChanged(Exception):
    """The subscriber's account is no longer what its token said."""


def _with_accounts(sql: str, count: int) -> str:
    """The statement, which takes so many parameters, with the places of the accounts that are gone."""
    return (
        f"SELECT p.*, ARRAY(SELECT m.place FROM unnest(${count + 1}::bigint[], ${count + 2}::int[]) "
        f"WITH ORDINALITY m (account, version, place) WHERE NOT {guard('m.account', 'm.version')}) AS gone "
        f"FROM ({sql}) p"
    )


async def read_event(
    database: Database,
    question: Question,
    since: int | None,
    upto: int | None,
    accounts: Iterable[Account],
) -> Reading:
    """One event, and who of the accounts must not be told, all read in one snapshot.

    Raises `OutOfSight`, `DatabaseUnavailable`.
    """
    asking = list(accounts)
    parameters = question.bind(since, upto)
    [row] = await database.fetch(
        _with_accounts(question.sql, len(parameters)),
        *parameters,
        [account for account, _ in asking],
        [version for _, version in asking],
    )
    answer, patients = unmarked(row[0])
    gone = frozenset(asking[place - 1] for place in row["gone"])
    if answer == b"null":
        raise OutOfSight
    # The payload begins with the type's marker: {"#":[…],"kind":…
    marker, _, rest = answer.removeprefix(b'{"#":').partition(b"]")
    cursor, passed, told, lag_s = orjson.loads(marker + b"]")
    return Reading(b"{" + rest.removeprefix(b","), patients, since, cursor, passed, told, lag_s, gone)


def errors_of(error: Exception) -> list[dict[str, Any]]:
    """What a client is shown where its subscription could not begin, or cannot go on."""
    return present([GraphQLError("", original_error=error)])


def _permitted(reading: Reading, account: Account) -> Reading:
    if account in reading.gone:
        raise AccountChanged
    return reading


class Member:
    """One subscription: whose, under which id, and the cursor up to which it was told."""

    __slots__ = ("account", "cursor", "group", "head", "operation_id", "socket")

    def __init__(self, socket: Socket, operation_id: str) -> None:
        self.socket = socket
        self.account = socket.account
        self.operation_id = operation_id
        # What comes before the event's own bytes.
        self.head = b'{"id":%b,"type":"next","payload":{"data":' % orjson.dumps(operation_id)
        self.cursor = 0
        self.group: Group | None = None

    def leave(self) -> None:
        """It is told nothing more."""
        if self.group is not None:
            self.group.leave(self)


class Group:
    """All who ask the same thing."""

    def __init__(self, watching: Watching, question: Question, identity: tuple[str, ...]) -> None:
        self._watching = watching
        self._question = question
        self.identity = identity
        self._members: dict[Member, None] = {}
        self._starting = 0
        self._failed = False
        # What was heard: the highest cursor, how often the listener was cut, and whether it was since the last round.
        self._heard = 0
        self._cuts = 0
        self._cut = False
        self._rung = asyncio.Event()
        # The present state is read once for all who asked before the reading began.
        self._numbers = itertools.count()
        self._lock = asyncio.Lock()
        self._asking: set[Account] = set()
        self._snapshot: tuple[int, Reading] | None = None
        watching.feed.follow(question.topic, self._ring)
        # An empty context: what the group logs is no single request's.
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name="feed-group", context=contextvars.Context()
        )

    def _ring(self, cursor: int | None) -> None:
        if cursor is None:
            self._cut = True
            self._cuts += 1
        else:
            self._heard = max(self._heard, cursor)
        self._rung.set()

    # Joining and leaving

    async def join(self, member: Member, after: int | None) -> None:
        """The member has been told the present state, or what came after its cursor, and is one of the group.

        Raises `OutOfSight`, `AccountChanged`, `DatabaseUnavailable`.
        """
        self._starting += 1
        try:
            while True:
                cuts = self._cuts
                if after is None or not await self._catch_up(member, after):
                    await self._tell(member, await self._present_state(member.account))
                if cuts == self._cuts:
                    break
                after = member.cursor  # what was published during the cut may have gone unheard
            if self._failed:
                raise RuntimeError("the group ended while it was joined")
            member.group = self
            self._members[member] = None
            SUBSCRIPTIONS.inc()
            if member.cursor < self._heard:
                self._rung.set()
        finally:
            self._starting -= 1
            self._end_if_empty()

    async def _catch_up(self, member: Member, after: int) -> bool:
        """Whether the outbox still held all that came after the cursor, and the member was told."""
        member.cursor = after
        while True:
            reading = await self._read(member.cursor, None, (member.account,))
            reading = _permitted(reading, member.account)
            if not reading.whole:
                return False
            await self._tell(member, reading)
            if reading.passed < BATCH:
                return True
            while member.socket.outlet.backlog() > self._watching.buffer_bytes // 2:  # noqa: ASYNC110 -- a transport tells nobody
                await asyncio.sleep(0.05)

    async def _present_state(self, account: Account) -> Reading:
        """The present state, from a reading that began after this call; shared with who else waits for one."""
        asked = next(self._numbers)
        self._asking.add(account)
        async with self._lock:
            if self._snapshot is None or self._snapshot[0] < asked:
                asking, self._asking = self._asking, set()
                began = next(self._numbers)
                try:
                    self._snapshot = (began, await self._read(None, None, asking))
                except BaseException:
                    self._asking |= asking
                    raise
            return _permitted(self._snapshot[1], account)

    def leave(self, member: Member) -> None:
        """The member is told nothing more; the last one ends the group."""
        if member in self._members:
            del self._members[member]
            SUBSCRIPTIONS.dec()
            self._end_if_empty()

    def _end_if_empty(self) -> None:
        if not self._starting:
            self._snapshot = None
            if not self._members:
                self._end()

    def _end(self) -> None:
        self._let_go()
        self._task.cancel()

    def _let_go(self) -> None:
        self._watching.feed.leave(self._question.topic, self._ring)
        self._watching.forget(self)

    def _fail(self, error: Exception) -> None:
        """Everybody is told that it does not go on; whoever asks again begins a new group."""
        self._failed = True
        self._let_go()
        shown = errors_of(error)
        while self._members:
            member, _ = self._members.popitem()
            SUBSCRIPTIONS.dec()
            member.socket.fail(member.operation_id, shown)

    # Following

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause, longest = _RETRY_S
        while True:
            await self._rung.wait()
            self._rung.clear()
            began = loop.time()
            cut, self._cut = self._cut, False
            try:
                await self._round(cut)
                pause = _RETRY_S[0]
            except (DatabaseUnavailable, asyncpg.QueryCanceledError):
                # Nobody has missed anything yet: the cursors stand where they were.
                self._cut |= cut
                self._rung.set()
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
            except Exception as error:
                self._fail(error)
                return
            await asyncio.sleep(began + PAUSE_S - loop.time())

    async def _round(self, cut: bool) -> None:
        """Every member has been told what was published; after a cut, the present state too."""
        if not cut:
            # More than one read tells of, or more since.
            if await self._catch_up_all(self._heard, None) and self._behind(self._heard):
                self._rung.set()
        elif self._members:
            state = await self._read_for(list(self._members), None, None)
            # All that led to it is told before it, so that nobody misses a change.
            while self._behind(state.cursor) and await self._catch_up_all(state.cursor, state.cursor):
                pass
            await self._send([member for member in self._members if member.cursor == state.cursor], state)
            if self._behind(self._heard):
                self._rung.set()

    def _behind(self, cursor: int) -> dict[int, list[Member]]:
        """Members who were told less than that, by what they were told."""
        behind: dict[int, list[Member]] = {}
        for member in self._members:
            if member.cursor < cursor:
                behind.setdefault(member.cursor, []).append(member)
        return behind

    async def _catch_up_all(self, cursor: int, upto: int | None) -> bool:
        """Members behind the cursor were told more, all up to the same one; whether anybody was."""
        moved = False
        for since, members in sorted(self._behind(cursor).items()):
            if upto is not None and since >= upto:
                break
            reading = await self._read_for(members, since, upto)
            if not reading.whole:
                reading = await self._read_for(members, None, None)
            upto = reading.cursor if upto is None else upto
            moved |= reading.cursor > since
            await self._send(members, reading)
        return moved

    async def _read_for(self, members: list[Member], since: int | None, upto: int | None) -> Reading:
        return await self._read(since, upto, {member.account for member in members})

    async def _read(self, since: int | None, upto: int | None, accounts: Iterable[Account]) -> Reading:
        FEED_READS.inc()
        reading = await read_event(self._watching.database, self._question, since, upto, accounts)
        if reading.told:
            FEED_LAG.observe(max(0.0, reading.lag_s))
        return reading

    # Sending

    async def _note(self, members: Iterable[Member], reading: Reading) -> None:
        """It stands in the access log that the members are shown whose records it holds; each account once."""
        if reading.patients and reading.tells:
            readers = {member.account: member.socket.reader for member in members}
            for account in reading.gone:
                readers.pop(account, None)
            await self._watching.readings.note(self._question.field, reading.patients, readers.values())

    async def _tell(self, member: Member, reading: Reading) -> None:
        """A member who is joining is told what was read for it."""
        await self._note((member,), reading)
        member.cursor = reading.cursor
        if reading.tells:
            FEED_FRAMES.inc()
            self._write(member, text_frame(member.head, self._body(reading)))

    def _body(self, reading: Reading) -> bytes:
        return b'{"%b":%b}}}' % (self._question.response_key.encode(), reading.data)

    async def _send(self, members: list[Member], reading: Reading) -> None:
        """The members are told, a few hundred at a time; those who left meanwhile are not."""
        await self._note(members, reading)
        cursor, gone, tells = reading.cursor, reading.gone, reading.tells
        body, frames, here, sent = self._body(reading), dict[str, bytes](), self._members, 0
        for number, member in enumerate(members, 1):
            if member not in here:
                continue
            if gone and member.account in gone:
                self.leave(member)
                dismiss(member.socket)
                continue
            member.cursor = cursor
            if not tells:
                continue
            frame = frames.get(member.operation_id)
            if frame is None:
                frame = text_frame(member.head, body)
                if len(frames) < _FRAMES_KEPT:
                    frames[member.operation_id] = frame
            self._write(member, frame)
            sent += 1
            if not number % _TURN:
                await asyncio.sleep(0)
        FEED_FRAMES.inc(sent)

    def _write(self, member: Member, frame: bytes) -> None:
        """The frame is on its way, unless the client has left too much unread already: then it is dropped."""
        outlet = member.socket.outlet
        if outlet.backlog() > self._watching.buffer_bytes:
            FEED_DROPPED.inc()
            log.warning("slow_reader_dropped")
            self.leave(member)
            outlet.end(TOO_SLOW, "The client reads too slowly.")
        else:
            outlet.write(frame)


class Watching:
    """One process's groups."""

    def __init__(self, database: Database, feed: Feed, readings: Readings, *, buffer_bytes: int) -> None:
        self.database = database
        self.feed = feed
        self.readings = readings
        self.buffer_bytes = buffer_bytes
        self._groups: dict[tuple[str, ...], Group] = {}

    async def join(self, socket: Socket, operation_id: str, question: Question, after: int | None) -> Member:
        """The subscriber has its beginning, and is told all that follows until it leaves.

        Raises as `Group.join`.
        """
        identity = question.identity()
        group = self._groups.get(identity)
        if group is None:
            group = self._groups[identity] = Group(self, question, identity)
        member = Member(socket, operation_id)
        await group.join(member, after)
        return member

    def forget(self, group: Group) -> None:
        """The group has ended."""
        if self._groups.get(group.identity) is group:
            del self._groups[group.identity]
