"""Who somebody is here whom an OpenID Connect provider has signed in.

They are known by issuer and subject, which a provider never gives to another person; an e-mail address it may.
An address counts once, at the first sign-in, if the provider has verified it and a setting lets it count.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.errors import Refusal
from ekoyka.identity import operations
from ekoyka.identity.sessions import NO_PASSWORD, authority_changed, end_sessions
from ekoyka.identity.tables import AccessEntry, Account, ExternalIdentity


class ProviderUnavailable(Exception):
    """The provider does not answer in time, or not as one; the same sign-in may succeed in a moment."""


class NotVouchedFor(Exception):
    """The provider's answer vouches for nobody; the text is a code, and never a token."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody whom the provider has signed in; the address is one that it has verified, or None."""

    issuer: str
    subject: str
    email: str | None
    name: str | None


class AccountMissing(Refusal):
    """Nobody here is known by this identity, and none may be made for it."""

    code = "ACCOUNT_MISSING"
    ru = "Для этого входа нет учётной записи: обратитесь к администратору."
    en = "There is no account for this sign-in: ask the administrator."


class AccountNotLinked(Refusal):
    """An account with the identity's address exists, and may not be linked to it."""

    code = "ACCOUNT_NOT_LINKED"
    ru = "Учётная запись с этим адресом есть, но она не связана с этим входом: войдите с паролем."
    en = "An account with this address exists and is not linked to this sign-in: use its password."


class AddressNotVerified(Refusal):
    """The provider has verified no address of this person."""

    code = "ADDRESS_NOT_VERIFIED"
    ru = "Поставщик удостоверений не подтвердил адрес электронной почты: подтвердите его там."
    en = "The identity provider has not verified your e-mail address: verify it there."


async def account_of(session: AsyncSession, identity: Identity, *, links: bool, creates: bool) -> int:
    """The key of the account that the person is: linked to it, at the first sign-in, or made for it.

    Two first sign-ins at once go one after the other. Raises `AccountMissing`, `AccountNotLinked`,
    `AddressNotVerified`, `Invalid` for an address that is none.
    """
    await session.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:who, 0))"),
        {"who": f"{identity.issuer}\n{identity.subject}"},
    )
    known: int | None = await session.scalar(
        text("SELECT account_id FROM external_identity WHERE issuer = :issuer AND subject = :subject"),
        {"issuer": identity.issuer, "subject": identity.subject},
    )
    if known is not None:
        return known
    if not links and not creates:
        raise AccountMissing
    if identity.email is None:
        raise AddressNotVerified
    found = await operations.account_with(session, identity.email)
    if found is not None:
        return await _linked(session, identity, found, links=links)
    if not creates:
        raise AccountMissing
    name = " ".join((identity.name or identity.email).split())[:200]
    account = await operations.register(
        session, email=identity.email, password_hash=NO_PASSWORD, details={"name": name}
    )
    _link(session, identity, account.id)
    return account.id


async def _linked(session: AsyncSession, identity: Identity, account_id: int, *, links: bool) -> int:
    account = await session.get(Account, account_id, with_for_update=True)
    assert account is not None
    # One account is one person of a provider: whoever gets the address later on is another one.
    other = await session.scalar(
        text("SELECT true FROM external_identity WHERE account_id = :account AND issuer = :issuer"),
        {"account": account_id, "issuer": identity.issuer},
    )
    if other or not links:
        raise AccountNotLinked
    # Whoever registered here was never asked to prove the address: their password and sessions end.
    account.password_hash = NO_PASSWORD
    await end_sessions(session, account_id)
    _link(session, identity, account_id)
    await authority_changed(session, account)
    return account_id


def _link(session: AsyncSession, identity: Identity, account_id: int) -> None:
    session.add(ExternalIdentity(account_id=account_id, issuer=identity.issuer, subject=identity.subject))
    session.add(
        AccessEntry(
            account_id=account_id, action="identity_link", object_type="Account", object_id=account_id
        )
    )
