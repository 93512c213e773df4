"""What every operation runs with: the actor, the database, the language, the parts of the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from ekoyka.certificates.render import Renderer
from ekoyka.database import Database
from ekoyka.feed import Feed
from ekoyka.graph.compile import ActorShape
from ekoyka.graph.declare import ANONYMOUS, TYPES
from ekoyka.graph.execution import ReadContext
from ekoyka.graph.plan import Planner
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import PasswordHasher, Tokens
from ekoyka.identity.queries import guard
from ekoyka.settings import Settings

_VALUES = {"account": "bigint", "version": "int", "doctor_of": "bigint[]", "dispatcher_of": "bigint[]"}


def _guard(value: Callable[[str], str]) -> str:
    return guard(value("account"), value("version"))


def actor_shape(actor: Actor | None) -> ActorShape:
    """What of an actor changes a plan: the kinds of roles held."""
    if actor is None:
        return ActorShape(frozenset({ANONYMOUS}), _VALUES, None)
    return ActorShape(frozenset(role.value for role in actor.roles), _VALUES, _guard)


def actor_values(actor: Actor | None) -> Mapping[str, Any]:
    """What of an actor is bound when a statement runs."""
    if actor is None:
        return {"account": None, "version": None, "doctor_of": [], "dispatcher_of": []}
    return {
        "account": actor.account_id,
        "version": actor.auth_version,
        "doctor_of": sorted(actor.doctor_of),
        "dispatcher_of": sorted(actor.dispatcher_of),
    }


@dataclass(frozen=True)
class Services:
    """The parts of the server that live as long as its process."""

    settings: Settings
    database: Database
    planner: Planner
    hasher: PasswordHasher
    tokens: Tokens
    renderer: Renderer
    feed: Feed


class Run(ReadContext):
    """One operation's context."""

    def __init__(
        self, services: Services, connection: HTTPConnection, actor: Actor | None, language: str, *, compiled: bool = True
    ) -> None:
        super().__init__(services.planner)
        self.services = services
        self.connection = connection
        self.actor = actor
        self.language = language
        self.compiled = compiled
        self.connection_params: dict[str, Any] | None = None

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
        return actor_shape(self.actor)

    def actor_values(self) -> Mapping[str, Any]:
        return actor_values(self.actor)

    async def fetch_value(self, sql: str, *parameters: Any) -> str | None:
        value: str | None = await self.database.fetch_value(sql, *parameters)
        return value

    async def payload(
        self,
        response_key: str,
        type_name: str,
        made: int | Mapping[str, Any],
        session: AsyncSession | None = None,
    ) -> dict[str, Any]:
        """A mutation's or event's answer, read by the selection planned for this type; one statement.

        ``made`` is a row's key, or the values of a type declared with columns. With a session it sees what
        the transaction has changed.
        """
        assert self.plan is not None
        statement = self.plan.roots[response_key].payloads[type_name]
        values = {"key": made} if isinstance(made, int) else dict.fromkeys(TYPES[type_name].columns) | dict(made)
        parameters = statement.bind(self.actor_values(), self.plan.variables, values)
        text = await (
            self.database.fetch_value_in(session, statement.sql, *parameters)
            if session is not None
            else self.fetch_value(statement.sql, *parameters)
        )
        row: dict[str, Any] = orjson.loads(text)
        row[""] = type_name
        return row
