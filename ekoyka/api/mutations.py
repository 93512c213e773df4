"""How a mutation runs: one transaction, its payload read in it, refusals as data.

A mutation is declared with the roles that may call it, the type it returns and the refusals it knows. Its
function gets the operation's context, a session and the input, and returns the row's key, or the values of
a payload that is no row.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Annotated, Any, TypeVar, Union

import asyncpg
import orjson
import strawberry
import structlog
from sqlalchemy.exc import DBAPIError
from strawberry.types.arguments import convert_argument
from strawberry.types.field import StrawberryField
from strawberry.types.fields.resolver import StrawberryResolver

from ekoyka.api.context import PERFORM, Payload, Run
from ekoyka.database import DatabaseUnavailable, NotProvided, OutcomeUnknown
from ekoyka.errors import IdempotencyKeyReused, Invalid, NotFound, Refusal, VersionConflict
from ekoyka.graph import declare as graph
from ekoyka.graph.ids import BadInput, decode_as
from ekoyka.identity import idempotency
from ekoyka.identity.credentials import NotAuthenticated
from ekoyka.identity.queries import confirmation, named
from ekoyka.observability import where

log = structlog.get_logger(__name__)

VERSION_TEXT = "The version that was read; a stale one is refused with the current row."
KEY_TEXT = "Makes a repeated request harmless: the same key with the same input gives the first result again."
_ATTEMPTS = 3
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
_REFUSALS: dict[type[Refusal], str] = {}
_FIELDS: dict[str, StrawberryField] = {}
_Class = TypeVar("_Class", bound=type)

Made = Mapping[str, Any]
"""The values of a payload that is no row, for a type declared with ``columns``."""
Body = Callable[..., Awaitable[Any]]

RefusalInterface = graph.interface(
    "Refusal",
    "A named «no», with what the client needs to act on.",
    {
        "code": ("RefusalCode", "The same for all refusals of this kind, for ever."),
        "message": ("str", "What to tell the person, in their language."),
        "path": ("list[str] | None", "The input's field that is meant, if one is."),
    },
)


def refusal(
    cls: type[Refusal], description: str, columns: Mapping[str, str] | None = None
) -> Callable[[_Class], _Class]:
    """The class declares the GraphQL type of a refusal: what it carries beside code, message and path.

    ``columns`` are the refusal's fields with their PostgreSQL types.
    """

    def declare(body: _Class) -> _Class:
        common = {
            "code": (graph.column("The same for all refusals of this kind, for ever."), "RefusalCode"),
            "message": (graph.column("What to tell the person, in their language."), "str"),
            "path": (graph.column("The input's field that is meant, if one is."), "list[str] | None"),
        }
        whole: Any = type(
            cls.__name__,
            (body,),
            {
                **{name: field for name, (field, _) in common.items()},
                "__annotations__": {name: text for name, (_, text) in common.items()},
            },
        )
        _REFUSALS[cls] = cls.__name__
        graph.type_(
            description=description,
            columns={"code": "text", "message": "text", "path": "text[]", **(columns or {})},
            interfaces=(RefusalInterface,),
        )(whole)
        return body

    return declare


def close_codes() -> None:
    """The enum of codes holds those of every refusal declared; call it once, when all are."""
    texts = {cls.code: (inspect.getdoc(cls) or "").partition("\n")[0] for cls in _REFUSALS}
    make_enum: Any = StrEnum
    codes = make_enum("RefusalCode", {code: code for code in sorted(texts)})
    graph.enum(codes, "The codes of all refusals; they never change.", texts)


def key(type_name: str, value: str, *path: str) -> int:
    """The key in an input's global id. Raises `Invalid`, naming the input's field."""
    try:
        return decode_as(type_name, value)
    except BadInput as error:
        raise Invalid(
            path, ru=f"Здесь нужен идентификатор {type_name}, полученный от сервера.", en=str(error)
        ) from None


def given(value: Any, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of an input that the client gave, null included."""
    return {
        field.name: getattr(value, field.name)
        for field in fields(value)
        if field.name not in {"version", "id", "idempotency_key", *without}
        and getattr(value, field.name) is not strawberry.UNSET
    }


def mutation(
    name: str,
    *,
    returns: str,
    or_returns: tuple[str, ...] = (),
    roles: frozenset[str],
    refusals: Iterable[type[Refusal]] = (),
    description: str,
    transaction: bool = True,
    cost: int = 0,
) -> Callable[[Body], Body]:
    """The function is the mutation of this GraphQL name: ``(run, session, input)``, or ``(run, input)``
    without a ``transaction`` of its own, where it opens what it needs and may return another type by its name.
    ``cost`` is that of what it does."""

    def declare(body: Body) -> Body:
        input_type = inspect.get_annotations(body, eval_str=True)["input"]
        input_fields = {field.name for field in fields(input_type)}
        known = list(dict.fromkeys([*refusals, Invalid, NotFound]))
        if "version" in input_fields:
            known.append(VersionConflict)
        if "idempotency_key" in input_fields:
            known.append(IdempotencyKeyReused)

        async def perform(run: Run, response_key: str, given: Any) -> Payload:
            strawberry_schema = run.planner.schema._strawberry_schema  # type: ignore[attr-defined]  # its own mark
            input = convert_argument(
                given,
                input_type,
                strawberry_schema.schema_converter.scalar_registry,
                strawberry_schema.config,
            )
            return await answer(run, response_key, input)

        async def answer(run: Run, response_key: str, input: Any) -> Payload:
            type_name, marked = await attempt(run, response_key, input)
            try:
                return type_name, await run.noted(name, marked)
            except DatabaseUnavailable as error:
                # It is committed, and what it shows cannot be written down.
                raise OutcomeUnknown from error

        async def attempt(run: Run, response_key: str, input: Any) -> Payload:
            try:
                _refuse_unwritable(input, ("input",))
                if not transaction:
                    made = await body(run, input)
                    kind, values = made if isinstance(made, tuple) else (returns, made)
                    return await _told(run, response_key, kind, values)
                return await _in_transaction(run, response_key, name, returns, body, input)
            except Refusal as error:
                return await run.payload(
                    response_key,
                    _REFUSALS[type(error)],
                    {
                        "code": error.code,
                        "message": error.message(run.language),
                        "path": list(error.path) or None,
                        **error.fields,
                    },
                )

        async def resolve(root: None, info: strawberry.Info, input: Any) -> Any:
            type_name, payload = await answer(info.context, str(info.path.key), input)
            return {**orjson.loads(payload), "": type_name}

        PERFORM[name] = perform
        union_name = f"{name[0].upper()}{name[1:]}Result"
        graph.NAMESPACE[union_name] = lambda: None
        field = StrawberryField(
            python_name=name,
            graphql_name=name,
            description=description,
            type_annotation=graph.annotation(union_name),
            base_resolver=StrawberryResolver(resolve),
        )
        field.arguments = [graph.argument("input", input_type.__name__, "What to do.")]
        graph.NAMESPACE[input_type.__name__] = input_type
        graph.ROOT_ROLES[f"Mutation.{name}"] = roles
        graph.ROOT_COSTS[f"Mutation.{name}"] = cost
        _FIELDS[name] = field
        _UNIONS[union_name] = ((returns, *or_returns), known)
        return body

    return declare


_UNIONS: dict[str, tuple[tuple[str, ...], list[type[Refusal]]]] = {}


def mutation_type() -> type:
    """The schema's mutation type, of all mutations declared so far."""
    for union_name, (returns, known) in _UNIONS.items():
        members = tuple(graph.NAMESPACE[name] for name in (*returns, *(_REFUSALS[cls] for cls in known)))
        graph.NAMESPACE[union_name] = Annotated[
            Union[members],  # noqa: UP007 -- a tuple made at run time
            strawberry.union(union_name, description="What was done, or a named «no»."),
        ]
    return graph.object_of_fields("Mutation", "Changing.", _FIELDS)


async def _told(run: Run, response_key: str, returns: str, made: int | Made) -> Payload:
    """The payload of what the mutation has committed by itself. Raises `OutcomeUnknown` where it cannot be read."""
    try:
        return await run.payload(response_key, returns, made)
    except DatabaseUnavailable as error:
        raise OutcomeUnknown from error


async def _in_transaction(
    run: Run, response_key: str, name: str, returns: str, body: Body, input: Any
) -> Payload:
    for attempt in range(_ATTEMPTS):
        try:
            run.after_commit.clear()
            async with run.database.transaction(
                provided=confirmation(run.actor) if run.actor is not None else None,
                ward=named(run.actor) if run.actor is not None else None,
            ) as session:
                client_key = getattr(input, "idempotency_key", None)
                made: int | Made | None = None
                if client_key and run.actor is not None:
                    made = await idempotency.claim(
                        session, actor=run.actor, mutation=name, key=client_key, input_hash=_hash(input)
                    )
                if made is None:
                    made = await body(run, session, input)
                    if client_key and run.actor is not None and isinstance(made, int):
                        await idempotency.keep(
                            session, actor=run.actor, mutation=name, key=client_key, result_id=made
                        )
                payload = await run.payload(response_key, returns, made, session)
        except NotProvided as error:
            raise NotAuthenticated("stale") from error
        except (DBAPIError, asyncpg.PostgresError) as error:
            # Deadlock or serialization failure: PostgreSQL undid it all, so it may be done again.
            if (
                getattr(getattr(error, "orig", error), "sqlstate", None) not in ("40P01", "40001")
                or attempt == _ATTEMPTS - 1
            ):
                raise
            await asyncio.sleep(0.01 * 2**attempt)
        else:
            return await _afterwards(run, response_key, returns, made, payload)
    raise AssertionError("unreachable")


async def _afterwards(
    run: Run, response_key: str, returns: str, made: int | Made, payload: Payload
) -> Payload:
    """The payload when what was left to be done is done; where that cannot be, as it was before: it is committed."""
    if not run.after_commit:
        return payload
    try:
        while run.after_commit:
            await run.after_commit.pop()()
        return await run.payload(response_key, returns, made)
    except (DatabaseUnavailable, DBAPIError, asyncpg.PostgresError) as error:
        log.warning("left_undone", **where(error))
        return payload


def _plainly(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return str(value)


def _hash(input: Any) -> bytes:
    return hashlib.sha256(
        orjson.dumps(
            _plainly(input), default=_plainly, option=orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_SORT_KEYS
        )
    ).digest()


def _refuse_unwritable(value: Any, path: tuple[str, ...]) -> None:
    """PostgreSQL cannot hold NUL and half surrogates in text; say so by the field's name."""
    if is_dataclass(value):
        for field in fields(value):
            name = graph.camel(field.name)
            _refuse_unwritable(
                getattr(value, field.name), (*path[1:], name) if path == ("input",) else (*path, name)
            )
    elif isinstance(value, list):
        for item in value:
            _refuse_unwritable(item, path)
    elif isinstance(value, str) and _UNWRITABLE.search(value):
        raise Invalid(
            path,
            ru="Текст содержит знак, который нельзя сохранить.",
            en="The text has a sign that cannot be kept.",
        )


@refusal(NotFound, "There is no such record, or it is not the actor's to see: the two are one answer.")
class _NotFound:
    pass


@refusal(
    Invalid, "A value that cannot be meant; `path` names it.", {"reason_ru": "text", "reason_en": "text"}
)
class _Invalid:
    pass


@refusal(IdempotencyKeyReused, "The idempotency key was used before with another input.")
class _IdempotencyKeyReused:
    pass


@refusal(
    VersionConflict,
    "The row has changed since it was read.",
    {"object_type": "text", "object_id": "bigint", "current_version": "int"},
)
class _VersionConflict:
    current: "Node | None" = graph.any_node(  # type: ignore[name-defined]  # noqa: F821, UP037
        lambda row, names: (f"{row}.object_type", f"{row}.object_id"), "The row as it is now."
    )
    current_version: int = graph.column("The version to pass next time.")
