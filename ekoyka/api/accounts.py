"""The accounts that have signed in on sockets: whoever is blocked or gets other roles is signed out at once."""

from __future__ import annotations

import asyncio
import contextvars
from functools import partial
from typing import Any, Protocol

import asyncpg

from ekoyka.api.outlets import Outlet
from ekoyka.database import Database, DatabaseUnavailable
from ekoyka.feed import Feed, Ring
from ekoyka.identity.queries import account_topic, guard
from ekoyka.identity.readings import Reader

Account = tuple[int, int]
"""An account's id and ``auth_version``, as a token named them."""

ACCOUNT_CHANGED = 4403
_RETRY_S = 0.5


class Socket(Protocol):
    """A socket that somebody has signed in on."""

    outlet: Outlet

    @property
    def account(self) -> Account:
        """Who has signed in on it."""

    @property
    def reader(self) -> Reader:
        """They, for the access log."""

    def fail(self, operation_id: str, errors: list[dict[str, Any]]) -> None:
        """The operation has ended with these errors."""


def dismiss(socket: Socket) -> None:
    """The socket is closed, as its account is no longer what its token said."""
    socket.outlet.end(ACCOUNT_CHANGED, "The account was blocked or its roles have changed.")


class Accounts:
    """One process's sockets by account; each is closed when its account is not what it was.

    No socket has a task for this: the feed rings for the account, and one statement asks about all that it
    has rung for.
    """

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._feed = feed
        self._sockets: dict[int, tuple[Ring, set[Socket]]] = {}
        self._changed: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, socket: Socket) -> None:
        """The socket is watched."""
        account = socket.account[0]
        if account not in self._sockets:
            ring = partial(self._ring, account)
            self._sockets[account] = (ring, set())
            self._feed.follow(account_topic(account), ring)
        self._sockets[account][1].add(socket)

    def remove(self, socket: Socket) -> None:
        """The socket is watched no more."""
        account = socket.account[0]
        ring, sockets = self._sockets[account]
        sockets.discard(socket)
        if not sockets:
            del self._sockets[account]
            self._feed.leave(account_topic(account), ring)

    def _ring(self, account: int, _cursor: int | None) -> None:
        self._changed.add(account)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._check(), name="accounts", context=contextvars.Context()
            )

    async def _check(self) -> None:
        """All accounts that something was heard of are asked about together, until there is none left."""
        try:
            while self._changed:
                asked = {
                    socket.account
                    for account in self._changed & self._sockets.keys()
                    for socket in self._sockets[account][1]
                }
                self._changed.clear()
                try:
                    gone = await _gone(self._database, asked)
                except (DatabaseUnavailable, asyncpg.QueryCanceledError):
                    self._changed |= {account for account, _ in asked}
                    await asyncio.sleep(_RETRY_S)
                    continue
                for account in gone:
                    for socket in list(self._sockets.get(account[0], (None, ()))[1]):
                        if socket.account == account:
                            dismiss(socket)
        finally:
            self._task = None


async def _gone(database: Database, accounts: set[Account]) -> list[Account]:
    rows = await database.fetch(
        "SELECT m.account, m.version FROM unnest($1::bigint[], $2::int[]) m (account, version) "
        f"WHERE NOT {guard('m.account', 'm.version')}",
        [account for account, _ in accounts],
        [version for _, version in accounts],
    )
    return [(row["account"], row["version"]) for row in rows]
