"""What every operation runs with: the actor, the database, the language, the parts of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Self

from graphql import GraphQLError, get_argument_values
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from ekoyka.api.accounts import Accounts
from ekoyka.api.browsers import Browsers, Carried
from ekoyka.api.clients import address_of
from ekoyka.api.presentation import OutOfSight
from ekoyka.api.watching import Watching
from ekoyka.certificates.render import Renderer
from ekoyka.database import ACTOR, Database
from ekoyka.documents import Documents
from ekoyka.feed import Feed
from ekoyka.graph.compile import ActorShape
from ekoyka.graph.execution import ReadContext
from ekoyka.graph.model import ANONYMOUS, TYPES
from ekoyka.graph.plan import OperationPlan, PlanError, Planner, RootPlan
from ekoyka.graph.text import MARK, unmarked
from ekoyka.identity import limits
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import PasswordHasher, Tokens
from ekoyka.identity.queries import guard, named, placed
from ekoyka.identity.readings import Reader, Readings, reader_of
from ekoyka.identity.tables import Role
from ekoyka.links import pads
from ekoyka.observability import request_id
from ekoyka.rates import Purses, RateLimited, attempt
from ekoyka.settings import Settings
from ekoyka.tally import Tallies

if TYPE_CHECKING:
    from ekoyka.identity.provider import Provider

# Operations of a greater cost are counted against what an account may ask for in a minute.
EXPENSIVE = 500
_VALUES = {
    "named": "text",
    "placed": "text",
    "account": "bigint",
    "version": "int",
    "session": "bigint",
    "doctor_of": "bigint[]",
    "dispatcher_of": "bigint[]",
    "base_url": "text",
    "download_ttl_s": "int",
    "pad_in": "bytea",
    "pad_out": "bytea",
}


def _walled(value: Callable[[str], str], used: frozenset[str]) -> str:
    """The actor is named to row-level security before any row is looked at.

    By their places of work alone where the statement does not ask for the person, so that colleagues who watch
    the same thing still have one statement with the same values.
    """
    return f"set_config('{ACTOR}', {value('named' if 'account' in used else 'placed')}, true) IS NOT NULL"


def _guard(value: Callable[[str], str]) -> str:
    return guard(value("account"), value("version"))


_ANONYMOUS = ActorShape(frozenset({ANONYMOUS}), _VALUES, wall=None, guard=None)


def shape_of(actor: Actor | None) -> ActorShape:
    """What of the actor changes a plan."""
    return _ANONYMOUS if actor is None else _shape(actor.roles)


@cache
def _shape(roles: frozenset[Role]) -> ActorShape:
    return ActorShape(frozenset(role.value for role in roles), _VALUES, wall=_walled, guard=_guard)


Payload = tuple[str, bytes]
"""The name of a payload's type, and its JSON."""

# What each mutation does with its input as it was coerced; `mutations` fills it.
PERFORM: dict[str, Callable[[Run, str, Any], Awaitable[Payload]]] = {}


@dataclass(frozen=True)
class Services:
    """The parts of the server that live as long as its process."""

    settings: Settings
    database: Database
    planner: Planner
    hasher: PasswordHasher
    tokens: Tokens
    download_keys: tuple[bytes, ...]
    renderer: Renderer
    feed: Feed
    documents: Documents
    watching: Watching
    accounts: Accounts
    readings: Readings
    browsers: Browsers
    provider: Provider | None
    purses: Purses
    sockets: Tallies
    # Those that begin at once have rates in common, and would hold all connections waiting for each other.
    sign_ins: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    @cached_property
    def download_pads(self) -> tuple[bytes, bytes]:
        """What PostgreSQL signs download addresses with."""
        return pads(self.download_keys[0])


class Run(ReadContext):
    """One operation's context."""

    def __init__(
        self,
        services: Services,
        connection: HTTPConnection,
        actor: Actor | None,
        language: str,
        *,
        compiled: bool = True,
    ) -> None:
        super().__init__(services.planner)
        self.services = services
        self.connection = connection
        self.actor = actor
        self.language = language
        self.compiled = compiled
        self.connection_params: dict[str, Any] | None = None
        self._latest: Run | None = None
        # What the request's cookies carry, where they say who asks; and those that its answer sets.
        self.carried: Carried | None = None
        self.cookies: list[str] = []
        # What a mutation leaves to be done once its transaction is committed.
        self.after_commit: list[Callable[[], Awaitable[None]]] = []

    def for_operation(self) -> Self:
        own = super().for_operation()
        own.after_commit = []
        self._latest = own
        return own

    def last_plan(self) -> OperationPlan | None:
        """The plan of the operation that ran with this context, if it came so far as to be planned."""
        return (self._latest or self).plan

    @property
    def database(self) -> Database:
        """The process's database."""
        return self.services.database

    @property
    def known_actor(self) -> Actor:
        """The actor, where the field's roles leave no anonymous one."""
        assert self.actor is not None
        return self.actor

    def actor_shape(self) -> ActorShape:
        return shape_of(self.actor)

    def actor_values(self) -> Mapping[str, Any]:
        actor, services = self.actor, self.services
        return {
            "named": named(actor) if actor else "",
            "placed": placed(actor) if actor else "",
            "account": actor.account_id if actor else None,
            "version": actor.auth_version if actor else None,
            "session": actor.session_id if actor else None,
            "doctor_of": sorted(actor.doctor_of) if actor else [],
            "dispatcher_of": sorted(actor.dispatcher_of) if actor else [],
            "base_url": services.settings.base_url,
            "download_ttl_s": services.settings.download_ttl_s,
            "pad_in": services.download_pads[0],
            "pad_out": services.download_pads[1],
        }

    async def read(self, response_key: str) -> bytes:
        assert self.plan is not None
        if self.plan.roots[response_key].name == "certificateVerification":
            await attempt(self.database, *limits.verification(address_of(self.connection)))
        return await self.noted(self.plan.roots[response_key].name, await super().read(response_key))

    @property
    def reader(self) -> Reader:
        """Who is shown what this operation reads."""
        return reader_of(self.actor, request_id=request_id.get(), address=address_of(self.connection))

    async def noted(self, field: str, marked: bytes) -> bytes:
        """The answer of a root field as it is shown, once the access log says whose records it holds."""
        if MARK not in marked:
            return marked
        shown, patients = unmarked(marked)
        await self.services.readings.note(field, patients, [self.reader])
        return shown

    async def fetch_value(self, sql: str, *parameters: Any) -> bytes | None:
        value: bytes | None = await self.database.fetch_value(sql, *parameters)
        return value

    async def admit(self, plan: OperationPlan) -> None:
        if plan.cost <= EXPENSIVE or not self.services.settings.cost_per_minute:
            return
        address = address_of(self.connection)
        who = f"account {self.actor.account_id}" if self.actor is not None else f"address {address}"
        limits_of = limits.spending(who, address, self.services.settings.cost_per_minute)
        try:
            await self.services.purses.spend(who, plan.cost, *limits_of)
        except RateLimited as limited:
            # Nothing has begun.
            raise PlanError([GraphQLError("", original_error=limited)]) from limited

    async def perform(self, root: RootPlan) -> bytes:
        assert self.plan is not None
        if self.actor is not None:
            self.actor = replace(self.actor, request_id=request_id.get(), address=address_of(self.connection))
        arguments = get_argument_values(root.site.definition, root.site.node, self.plan.variables)
        _, payload = await PERFORM[root.name](self, root.response_key, arguments["input"])
        return payload

    async def payload(
        self,
        response_key: str,
        type_name: str,
        made: int | Mapping[str, Any],
        session: AsyncSession | None = None,
    ) -> Payload:
        """A mutation's answer, read by the selection planned for this type; one statement.

        ``made`` is a row's key, or the values of a type declared with columns. With a session it sees what
        the transaction has changed.
        """
        assert self.plan is not None
        statement = self.plan.roots[response_key].payloads[type_name]
        values = (
            {"key": made} if isinstance(made, int) else dict.fromkeys(TYPES[type_name].columns) | dict(made)
        )
        parameters = statement.bind(self.actor_values(), self.plan.variables, values)
        answer: bytes | None = await (
            self.database.fetch_value_in(session, statement.sql, *parameters)
            if session is not None
            else self.fetch_value(statement.sql, *parameters)
        )
        if answer is None or answer == b"null":
            raise OutOfSight
        return type_name, answer
