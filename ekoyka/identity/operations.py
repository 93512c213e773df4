"""Accounts, passwords, roles and blocking.

Passwords come in hashed: hashing has no place in a transaction. Whatever changes what an account may do
raises its ``auth_version``, so that tokens issued before are worth nothing from the commit on.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.columns import Email
from ekoyka.database import Database, constraint_name
from ekoyka.errors import Conflict, Invalid, NotFound, VersionConflict
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.identity.queries import confirm
from ekoyka.identity.sessions import NO_PASSWORD, allow_reset, authority_changed, end_sessions
from ekoyka.identity.tables import Account, AccountDetails, Role, RoleGrant
from ekoyka.validation import changed, validated


class EmailTaken(Conflict):
    """Somebody has registered with this e-mail address."""

    code = "EMAIL_TAKEN"
    ru = "С этим адресом уже зарегистрированы: войдите или возьмите другой адрес."
    en = "This address is registered already: sign in, or use another."


class RegistrationClosed(Conflict):
    """Accounts are made by administrators here."""

    code = "REGISTRATION_CLOSED"
    ru = "Учётные записи заводит администратор: обратитесь к нему."
    en = "Accounts are made by the administrator here: ask for one."


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


class _Registration(BaseModel):
    email: Email


# Taken by whoever changes how many superadministrators can sign in.
_SUPERADMINS = text("SELECT pg_advisory_xact_lock(hashtext('ekoyka superadmins'))")


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


async def create_account(
    session: AsyncSession, *, actor: Actor, email: str, details: dict[str, Any]
) -> tuple[str, datetime]:
    """Somebody has an account without a password; the code with which they set one, and until when it is good.

    Raises `EmailTaken`, `Invalid`.
    """
    account = await register(session, email=email, password_hash=NO_PASSWORD, details=details)
    access_log.record(session, actor, "account_create", "Account", account.id)
    return await allow_reset(session, actor=actor, account_id=account.id)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a sign-in is compared with; ``known_there``: the account has had a session from the address before."""

    account_id: int
    password_hash: str
    known_there: bool


async def account_with(session: AsyncSession, email: str) -> int | None:
    """The key of the account of this e-mail address. Raises `Invalid` for one that is none."""
    folded = validated(_Registration, {"email": email}).email
    found: int | None = await session.scalar(
        text("SELECT id FROM account WHERE email = :email"), {"email": folded}
    )
    return found


async def find_credentials(database: Database, email: str, address: str | None = None) -> Credentials | None:
    """For comparing outside of any transaction; None for an address of no account's. One read."""
    try:
        folded = validated(_Registration, {"email": email}).email
    except Invalid:
        return None
    rows = await database.fetch(
        "SELECT a.id, a.password_hash, EXISTS (SELECT FROM session s WHERE s.account_id = a.id "
        "AND s.address = $2) AS known_there FROM account a WHERE a.email = $1",
        folded,
        address,
    )
    return Credentials(*rows[0]) if rows else None


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


async def own_account(session: AsyncSession, *, actor: Actor) -> Account:
    """The actor's account, with the hash of its present password. Raises `NotAuthenticated`."""
    await confirm(session, actor)
    account = await session.get(Account, actor.account_id)
    assert account is not None
    return account


async def change_password(session: AsyncSession, *, actor: Actor, password_hash: str) -> Account:
    """The actor's password is this, and every session of theirs is over. Raises `NotAuthenticated`."""
    account = await _locked(session, actor.account_id)
    # Again, under the lock: the present password was compared in an earlier transaction.
    await confirm(session, actor)
    account.password_hash = password_hash
    await end_sessions(session, account.id)
    access_log.record(session, actor, "password_change", "Account", account.id)
    await authority_changed(session, account)
    return account


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
    await authority_changed(session, account)
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
    await authority_changed(session, account)
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
        await end_sessions(session, account_id)
        access_log.record(session, actor, "account_block", "Account", account_id)
        await authority_changed(session, account)
    return account


async def unblock_account(session: AsyncSession, *, actor: Actor, account_id: int) -> Account:
    """The account can sign in again. Raises `NotFound`."""
    account = await _locked(session, account_id)
    if account.blocked_at is not None:
        account.blocked_at = None
        access_log.record(session, actor, "account_unblock", "Account", account_id)
        await authority_changed(session, account)
    return account


async def create_admin(session: AsyncSession, *, email: str, password_hash: str, name: str) -> Account:
    """A superadministrator exists; for the command line, where nobody is signed in. Raises `EmailTaken`."""
    account = await register(session, email=email, password_hash=password_hash, details={"name": name})
    session.add(RoleGrant(account_id=account.id, role=Role.SUPERADMIN.value))
    await session.flush()
    return account
