"""The few reads about accounts that operations and the read path need."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import NotAuthenticated


def guard(account: str, version: str) -> str:
    """SQL of whether the account is still what its token says, given SQL of both."""
    return (
        f"EXISTS (SELECT FROM account g WHERE g.id = {account} AND g.auth_version = {version} "
        "AND g.blocked_at IS NULL)"
    )


def named(actor: Actor) -> str:
    """The actor as the database's row-level security is told of them (see `database.ACTOR`)."""
    return f"{actor.account_id}{placed(actor)}"


def placed(actor: Actor) -> str:
    """As `named`, without saying who it is: what is their own is not there."""
    doctor, dispatcher = (",".join(map(str, sorted(of))) for of in (actor.doctor_of, actor.dispatcher_of))
    return f"|{'on' if actor.superadmin else ''}|{doctor}|{dispatcher}"


def account_topic(account_id: int) -> str:
    """The topic that tells when an account is blocked or its roles or password change."""
    return f"account:{account_id}"


def confirmation(actor: Actor) -> str:
    """SQL, without parameters, that finds a row while the actor is still what their token says."""
    return f"SELECT WHERE {guard(f'{actor.account_id:d}', f'{actor.auth_version:d}')}"


_CONFIRM = text(f"SELECT {guard('CAST(:account AS bigint)', 'CAST(:version AS int)')}")


async def confirm(session: AsyncSession, actor: Actor) -> None:
    """The actor is still what their token says. Raises `NotAuthenticated`."""
    current = await session.scalar(_CONFIRM, {"account": actor.account_id, "version": actor.auth_version})
    if not current:
        raise NotAuthenticated("stale")


_ACTOR = text(
    """
    SELECT a.auth_version, a.blocked_at IS NOT NULL AS blocked,
        coalesce(bool_or(g.role = 'SUPERADMIN'), false) AS superadmin,
        array_remove(array_agg(g.dispensary_id) FILTER (WHERE g.role = 'DOCTOR'), NULL) AS doctor_of,
        array_remove(array_agg(g.dispensary_id) FILTER (WHERE g.role = 'DISPATCHER'), NULL) AS dispatcher_of
    FROM account a LEFT JOIN role_grant g ON g.account_id = a.id
    WHERE a.id = :account GROUP BY a.id
    """
)


async def actor_of(session: AsyncSession, account_id: int) -> Actor | None:
    """The account as an actor, as of now; None when it is blocked or not there."""
    row = (await session.execute(_ACTOR, {"account": account_id})).one_or_none()
    if row is None or row.blocked:
        return None
    return Actor(
        account_id=account_id,
        auth_version=row.auth_version,
        superadmin=row.superadmin,
        doctor_of=frozenset(row.doctor_of or ()),
        dispatcher_of=frozenset(row.dispatcher_of or ()),
    )
