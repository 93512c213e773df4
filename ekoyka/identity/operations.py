"""Accounts, sign-in, roles and blocking.

Passwords come in hashed: hashing has no place in a transaction. Whatever changes what an account may do
raises its ``auth_version``, so that tokens issued before are worth nothing from the commit on.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka import feed
from ekoyka.columns import Email
from ekoyka.database import constraint_name
from ekoyka.errors import Conflict, Invalid, NotFound, Refusal, VersionConflict
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.identity.queries import account_topic, actor_of, confirm
from ekoyka.identity.tables import Account, AccountDetails, RefreshToken, Role, RoleGrant, Session
from ekoyka.validation import changed, validated


class EmailTaken(Conflict):
    """Somebody has registered with this e-mail address."""

    code = "EMAIL_TAKEN"
    ru = "С этим адресом уже зарегистрированы: войдите или возьмите другой адрес."
    en = "This address is registered already: sign in, or use another."


class CredentialsWrong(Refusal):
    """No account has this e-mail address and password; which of the two is wrong is not told."""

    code = "CREDENTIALS_WRONG"
    ru = "Адрес или пароль неверны."
    en = "The address or the password is wrong."


class AccountBlocked(Refusal):
    """The account is blocked."""

    code = "ACCOUNT_BLOCKED"
    ru = "Учётная запись заблокирована: обратитесь к администратору."
    en = "The account is blocked: ask the administrator."


class SessionEnded(Refusal):
    """The refresh token is unknown, used or expired, or its session was ended."""

    code = "SESSION_ENDED"
    ru = "Сеанс завершён: войдите снова."
    en = "The session has ended: sign in again."


class LastSuperadmin(Conflict):
    """It would leave the network without a superadministrator who can sign in."""

    code = "LAST_SUPERADMIN"
    ru = "Это последний администратор сети: сначала назначьте другого."
    en = "This is the network's last superadministrator: appoint another first."


class OwnAccount(Conflict):
    """One cannot block oneself."""

    code = "OWN_ACCOUNT"
    ru = "Свою учётную запись заблокировать нельзя."
    en = "You cannot block your own account."


class RoleHeld(Conflict):
    """The account holds the role already."""

    code = "ROLE_HELD"
    ru = "Эта роль уже выдана."
    en = "The account holds this role already."


@dataclass(frozen=True, slots=True)
class SignedIn:
    """What a sign-in or refresh gives: who it is, and the next refresh token."""

    actor: Actor
    refresh_token: str


class _Registration(BaseModel):
    email: Email


# Taken by whoever changes how many superadministrators can sign in.
_SUPERADMINS = text("SELECT pg_advisory_xact_lock(hashtext('ekoyka superadmins'))")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


async def register(
    session: AsyncSession, *, email: str, password_hash: str, details: dict[str, Any]
) -> Account:
    """The person has an account. Raises `EmailTaken`, `Invalid`."""
    address = validated(_Registration, {"email": email}).email
    person = validated(AccountDetails, details)
    account = Account(email=address, password_hash=password_hash, **person.model_dump())
    session.add(account)
    try:
        await session.flush()
    except IntegrityError as error:
        if constraint_name(error) == "uq_account_email":
            raise EmailTaken(("email",)) from error
        raise
    return account


async def find_credentials(session: AsyncSession, email: str) -> tuple[int, str] | None:
    """The account's id and password hash, for comparing outside of the transaction; None for no account's."""
    try:
        address = validated(_Registration, {"email": email}).email
    except Invalid:
        return None
    row = (
        await session.execute(
            select(Account.id, Account.password_hash).where(Account.email == address)  # type: ignore[call-overload]
        )
    ).one_or_none()
    return (row[0], row[1]) if row else None


async def open_session(session: AsyncSession, *, account_id: int, password_hash: str, ttl_s: int) -> SignedIn:
    """A session is open, for whoever knew the password of this hash.

    Raises `CredentialsWrong` when the account has another by now, and `AccountBlocked`.
    """
    # Waits for a blocking or new password under way, and lets the next one see this session and end it.
    present = await session.scalar(
        text("SELECT password_hash FROM account WHERE id = :id FOR KEY SHARE"), {"id": account_id}
    )
    if present != password_hash:
        raise CredentialsWrong
    actor = await actor_of(session, account_id)
    if actor is None:
        raise AccountBlocked
    row = Session(account_id=account_id, expires_at=datetime.now(UTC) + timedelta(seconds=ttl_s))
    session.add(row)
    await session.flush()
    return SignedIn(actor, await _next_token(session, row.id))


async def _next_token(session: AsyncSession, session_id: int) -> str:
    token = secrets.token_urlsafe(32)
    session.add(RefreshToken(session_id=session_id, hash=_digest(token)))
    await session.flush()
    return token


# One use at a time, and none while the session is being ended: it must not outlive that by a token.
_ALIVE = text(
    """
    SELECT s.id, s.account_id FROM refresh_token r JOIN session s ON s.id = r.session_id
    WHERE r.hash = :hash AND s.ended_at IS NULL AND s.expires_at > now()
    FOR NO KEY UPDATE OF s
    """
)
_USE = text(
    "UPDATE refresh_token SET used_at = clock_timestamp() WHERE hash = :hash AND used_at IS NULL RETURNING true"
)
_END = text("UPDATE session SET ended_at = clock_timestamp() WHERE id = :id")


async def refresh(session: AsyncSession, refresh_token: str) -> SignedIn | None:
    """The token is used up and the next one given; None when it is no good.

    A token used a second time has been stolen from somebody: its whole session is ended, which must be
    committed, so this is an answer and not a refusal (RFC 9700, 4.14.2).
    """
    digest = _digest(refresh_token)
    alive = (await session.execute(_ALIVE, {"hash": digest})).one_or_none()
    if alive is None:
        return None
    if not await session.scalar(_USE, {"hash": digest}):
        await session.execute(_END, {"id": alive.id})
        return None
    actor = await actor_of(session, alive.account_id)
    if actor is None:
        return None
    return SignedIn(actor, await _next_token(session, alive.id))


async def end_session(session: AsyncSession, refresh_token: str) -> None:
    """The session of this refresh token, if there is one, is over."""
    await session.execute(
        text(
            "UPDATE session s SET ended_at = clock_timestamp() FROM refresh_token r "
            "WHERE r.hash = :hash AND s.id = r.session_id AND s.ended_at IS NULL"
        ),
        {"hash": _digest(refresh_token)},
    )


async def _locked(session: AsyncSession, account_id: int, version: int | None = None) -> Account:
    account = await session.get(Account, account_id, with_for_update=True)
    if account is None:
        raise NotFound(("id",))
    if version is not None and account.version != version:
        raise VersionConflict(
            ("version",), object_type="Account", object_id=account_id, current_version=account.version
        )
    return account


async def update_account(
    session: AsyncSession, *, actor: Actor, version: int, changes: dict[str, Any]
) -> Account:
    """The actor's own account says this of them. Raises `VersionConflict`, `Invalid`."""
    account = await _locked(session, actor.account_id, version)
    details = changed(account, AccountDetails, changes)
    for name, value in details.model_dump().items():
        setattr(account, name, value)
    account.version += 1
    return account


async def password_hash_of(session: AsyncSession, *, actor: Actor) -> str:
    """The hash of the actor's present password. Raises `NotAuthenticated`."""
    await confirm(session, actor)
    account = await session.get(Account, actor.account_id)
    assert account is not None
    return account.password_hash


async def change_password(session: AsyncSession, *, actor: Actor, password_hash: str) -> Account:
    """The actor's password is this, and every session of theirs is over. Raises `NotAuthenticated`."""
    account = await _locked(session, actor.account_id)
    # Again, under the lock: the present password was compared in an earlier transaction.
    await confirm(session, actor)
    account.password_hash = password_hash
    await _end_sessions(session, account.id)
    access_log.record(session, actor, "password_change", "Account", account.id)
    await _authority_changed(session, account)
    return account


async def _authority_changed(session: AsyncSession, account: Account) -> None:
    account.auth_version += 1
    account.version += 1
    await feed.publish(session, account_topic(account.id), {})


async def _end_sessions(session: AsyncSession, account_id: int) -> None:
    await session.execute(
        update(Session)
        .where(Session.account_id == account_id, Session.ended_at.is_(None))  # type: ignore[arg-type, union-attr]
        .values(ended_at=func.clock_timestamp())
    )


async def _keep_a_superadmin(session: AsyncSession) -> None:
    """Raises `LastSuperadmin` when the session's changes leave none who can sign in."""
    await session.flush()
    left = await session.scalar(
        text(
            "SELECT count(*) FROM role_grant g JOIN account a ON a.id = g.account_id "
            "WHERE g.role = 'SUPERADMIN' AND a.blocked_at IS NULL"
        )
    )
    if not left:
        raise LastSuperadmin


async def grant_role(
    session: AsyncSession, *, actor: Actor, account_id: int, role: Role, dispensary_id: int | None
) -> Account:
    """The account holds the role; the superadministrator's over the network, others over a dispensary.

    Raises `Invalid`, `NotFound`, `RoleHeld`.
    """
    if role is Role.USER:
        raise Invalid(
            ("role",),
            ru="Роль USER есть у всех.",
            en="Everybody is a USER: it is neither granted nor revoked.",
        )
    if (role is Role.SUPERADMIN) != (dispensary_id is None):
        raise Invalid(
            ("dispensaryId",),
            ru="SUPERADMIN — для всей сети, остальные роли — для одного диспансера.",
            en="SUPERADMIN is over the whole network; other roles are over one dispensary.",
        )
    await session.execute(_SUPERADMINS)
    account = await _locked(session, account_id)
    session.add(
        RoleGrant(
            account_id=account_id,
            role=role.value,
            dispensary_id=dispensary_id,
            granted_by_id=actor.account_id,
        )
    )
    try:
        await session.flush()
    except IntegrityError as error:
        if constraint_name(error) == "uq_role_grant":
            raise RoleHeld from error
        if constraint_name(error) == "fk_role_grant_dispensary_id":
            raise NotFound(("dispensaryId",)) from error
        raise
    access_log.record(
        session, actor, f"{role.value.lower()}_grant", "Account", account_id, dispensary_id=dispensary_id
    )
    await _authority_changed(session, account)
    return account


async def revoke_role(
    session: AsyncSession, *, actor: Actor, account_id: int, role: Role, dispensary_id: int | None
) -> Account:
    """The account does not hold the role any more. Raises `NotFound`, `LastSuperadmin`."""
    await session.execute(_SUPERADMINS)
    account = await _locked(session, account_id)
    gone = await session.scalar(
        text(
            "DELETE FROM role_grant WHERE account_id = :account AND role = :role "
            "AND dispensary_id IS NOT DISTINCT FROM CAST(:dispensary AS bigint) RETURNING id"
        ),
        {"account": account_id, "role": role.value, "dispensary": dispensary_id},
    )
    if gone is None:
        raise NotFound
    if role is Role.SUPERADMIN:
        await _keep_a_superadmin(session)
    access_log.record(
        session, actor, f"{role.value.lower()}_revoke", "Account", account_id, dispensary_id=dispensary_id
    )
    await _authority_changed(session, account)
    return account


async def block_account(session: AsyncSession, *, actor: Actor, account_id: int) -> Account:
    """The account can do nothing more, from the commit on. Raises `NotFound`, `OwnAccount`, `LastSuperadmin`."""
    if account_id == actor.account_id:
        raise OwnAccount
    await session.execute(_SUPERADMINS)
    account = await _locked(session, account_id)
    if account.blocked_at is None:
        account.blocked_at = datetime.now(UTC)
        await _keep_a_superadmin(session)
        await _end_sessions(session, account_id)
        access_log.record(session, actor, "account_block", "Account", account_id)
        await _authority_changed(session, account)
    return account


async def unblock_account(session: AsyncSession, *, actor: Actor, account_id: int) -> Account:
    """The account can sign in again. Raises `NotFound`."""
    account = await _locked(session, account_id)
    if account.blocked_at is not None:
        account.blocked_at = None
        access_log.record(session, actor, "account_unblock", "Account", account_id)
        await _authority_changed(session, account)
    return account


async def create_admin(session: AsyncSession, *, email: str, password_hash: str, name: str) -> Account:
    """A superadministrator exists; for the command line, where nobody is signed in. Raises `EmailTaken`."""
    account = await register(session, email=email, password_hash=password_hash, details={"name": name})
    session.add(RoleGrant(account_id=account.id, role=Role.SUPERADMIN.value))
    await session.flush()
    return account
