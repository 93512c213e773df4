"""Signing in, one's own account, roles and blocking."""

from __future__ import annotations

from datetime import datetime

import strawberry
from sqlalchemy.ext.asyncio import AsyncSession
from strawberry import UNSET

from ekoyka.api.context import Run, Services
from ekoyka.api.enums import Role
from ekoyka.api.mutations import VERSION_TEXT, Made, given, key, mutation
from ekoyka.api.permissions import ADMIN, ANYONE, SIGNED_IN
from ekoyka.api.scalars import ID, DateTime
from ekoyka.errors import Invalid
from ekoyka.graph import declare as graph
from ekoyka.identity import operations
from ekoyka.identity.operations import (
    AccountBlocked,
    CredentialsWrong,
    EmailTaken,
    LastSuperadmin,
    OwnAccount,
    RoleHeld,
    SessionEnded,
    SignedIn,
)

field = strawberry.field


@graph.type_(
    description="A sign-in: send `Authorization: Bearer <accessToken>` from now on.",
    columns={
        "access_token": "text",
        "expires_at": "timestamptz",
        "refresh_token": "text",
        "account_id": "bigint",
    },
)
class Tokens:
    """What a sign-in gives."""

    access_token: str = graph.column("A signed token that says who you are, for some minutes.")
    expires_at: DateTime = graph.column("When it ends.")
    refresh_token: str = graph.column("Good for one `tokenRefresh`; keep it secret.")
    account: SignedInAccount | None = graph.one("account_id", "Whose it is.")


@graph.type_(table="account", description="Who has just signed in.")
class SignedInAccount:
    """An account at its sign-in."""

    account_id: ID = graph.key_of("Account", lambda row: f"{row}.id", "The account's id.")
    name: str = graph.column("The person's name.")


async def sign_in(services: Services, email: str, password: str) -> tuple[SignedIn, str, datetime]:
    """A session is open: who it is, the access token and when it ends.

    Raises `CredentialsWrong`, `AccountBlocked`. Hashing stands between two transactions, in none.
    """
    async with services.database.transaction() as session:
        found = await operations.find_credentials(session, email)
    if not await services.hasher.verify(password, found[1] if found else None) or found is None:
        raise CredentialsWrong
    async with services.database.transaction() as session:
        signed_in = await operations.open_session(
            session, account_id=found[0], password_hash=found[1], ttl_s=services.settings.refresh_token_ttl_s
        )
    token = services.tokens.issue(signed_in.actor)
    return signed_in, token.text, token.expires_at


async def refresh(services: Services, refresh_token: str) -> tuple[SignedIn, str, datetime]:
    """The next pair of tokens. Raises `SessionEnded`."""
    async with services.database.transaction() as session:
        signed_in = await operations.refresh(session, refresh_token)
    if signed_in is None:
        raise SessionEnded
    token = services.tokens.issue(signed_in.actor)
    return signed_in, token.text, token.expires_at


def _made(signed_in: SignedIn, text: str, expires_at: datetime) -> Made:
    return {
        "access_token": text,
        "expires_at": expires_at,
        "refresh_token": signed_in.refresh_token,
        "account_id": signed_in.actor.account_id,
    }


@strawberry.input(description="Credentials.")
class SignInInput:
    email: str = field(description="The e-mail address.")
    password: str = field(description="The password.")


@mutation(
    "signIn",
    returns="Tokens",
    roles=ANYONE,
    refusals=(CredentialsWrong, AccountBlocked),
    description="Sign in. OAuth 2 clients use `POST /auth/token`.",
    transaction=False,
)
async def sign_in_mutation(run: Run, input: SignInInput) -> Made:
    return _made(*await sign_in(run.services, input.email, input.password))


@strawberry.input(description="A refresh token.")
class TokenInput:
    refresh_token: str = field(description="The refresh token of the last sign-in or refresh.")


@mutation(
    "tokenRefresh",
    returns="Tokens",
    roles=ANYONE,
    refusals=(SessionEnded,),
    description="A new pair of tokens for the old one, which is used up; using it again ends the session.",
    transaction=False,
)
async def token_refresh(run: Run, input: TokenInput) -> Made:
    return _made(*await refresh(run.services, input.refresh_token))


@graph.type_(description="Done.", columns={"done": "boolean"})
class SignedOut:
    """A sign-out."""

    done: bool = graph.column("Always true: the session is over, whether or not there was one.")


@mutation(
    "signOut",
    returns="SignedOut",
    roles=ANYONE,
    description="The session of this refresh token is over; the access token ends by itself within minutes.",
    transaction=False,
)
async def sign_out(run: Run, input: TokenInput) -> Made:
    async with run.database.transaction() as session:
        await operations.end_session(session, input.refresh_token)
    return {"done": True}


@strawberry.input(description="A new account.")
class RegisterInput:
    email: str = field(description="The e-mail address to sign in with.")
    password: str = field(
        description="At least 10 characters, at most 72 bytes: 72 Latin or 36 Cyrillic letters."
    )
    name: str = field(description="The person's name, 1 to 200 characters.")
    language: str = field(description="The language for messages: ru or en.", default="ru")


@mutation(
    "register",
    returns="Tokens",
    roles=ANYONE,
    refusals=(EmailTaken, AccountBlocked),
    description="A person gets an account and is signed in.",
    transaction=False,
)
async def register(run: Run, input: RegisterInput) -> Made:
    hashed = await run.services.hasher.hash(input.password)
    async with run.database.transaction() as session:
        account = await operations.register(
            session,
            email=input.email,
            password_hash=hashed,
            details={"name": input.name, "language": input.language},
        )
        signed_in = await operations.open_session(
            session,
            account_id=account.id,
            password_hash=hashed,
            ttl_s=run.services.settings.refresh_token_ttl_s,
        )
    token = run.services.tokens.issue(signed_in.actor)
    return _made(signed_in, token.text, token.expires_at)


@strawberry.input(description="Changes of one's own account; what is not given stays.")
class AccountUpdateInput:
    version: int = field(description=VERSION_TEXT)
    name: str | None = field(description="The person's name.", default=UNSET)
    position: str | None = field(description="Their position.", default=UNSET)
    language: str | None = field(description="The language: ru or en.", default=UNSET)


@mutation("accountUpdate", returns="Account", roles=SIGNED_IN, description="One's own account is edited.")
async def account_update(run: Run, session: AsyncSession, input: AccountUpdateInput) -> int:
    row = await operations.update_account(
        session, actor=run.known_actor, version=input.version, changes=given(input)
    )
    return row.id


@strawberry.input(description="A change of one's own password.")
class PasswordChangeInput:
    password: str = field(description="The present password.")
    new_password: str = field(
        description="At least 10 characters, at most 72 bytes: 72 Latin or 36 Cyrillic letters."
    )


@mutation(
    "passwordChange",
    returns="Tokens",
    roles=SIGNED_IN,
    refusals=(CredentialsWrong, AccountBlocked),
    description="One's own password is changed: every session is over, and a new one is open.",
    transaction=False,
)
async def password_change(run: Run, input: PasswordChangeInput) -> Made:
    actor, services = run.known_actor, run.services
    async with services.database.transaction() as session:
        present = await operations.password_hash_of(session, actor=actor)
    if not await services.hasher.verify(input.password, present):
        raise CredentialsWrong(("password",))
    try:
        hashed = await services.hasher.hash(input.new_password)
    except Invalid as error:
        raise Invalid(("newPassword",), ru=error.fields["reason_ru"], en=error.fields["reason_en"]) from None
    async with services.database.transaction() as session:
        account = await operations.change_password(session, actor=actor, password_hash=hashed)
        signed_in = await operations.open_session(
            session, account_id=account.id, password_hash=hashed, ttl_s=services.settings.refresh_token_ttl_s
        )
    token = services.tokens.issue(signed_in.actor)
    return _made(signed_in, token.text, token.expires_at)


@strawberry.input(description="A role of an account.")
class RoleInput:
    account_id: strawberry.ID = field(description="Whose.")
    role: Role = field(description="Which; USER is everybody's and is neither granted nor revoked.")
    dispensary_id: strawberry.ID | None = field(
        description="Over which dispensary; null for SUPERADMIN, which is over the whole network.",
        default=None,
    )


def _place(input: RoleInput) -> int | None:
    return key("Dispensary", input.dispensary_id, "dispensaryId") if input.dispensary_id else None


@mutation(
    "roleGrant",
    returns="Account",
    roles=ADMIN,
    refusals=(RoleHeld,),
    description="An account gets a role; its tokens so far end.",
)
async def role_grant(run: Run, session: AsyncSession, input: RoleInput) -> int:
    row = await operations.grant_role(
        session,
        actor=run.known_actor,
        account_id=key("Account", input.account_id, "accountId"),
        role=Role(input.role),
        dispensary_id=_place(input),
    )
    return row.id


@mutation(
    "roleRevoke",
    returns="Account",
    roles=ADMIN,
    refusals=(LastSuperadmin,),
    description="An account loses a role; its tokens so far end.",
)
async def role_revoke(run: Run, session: AsyncSession, input: RoleInput) -> int:
    row = await operations.revoke_role(
        session,
        actor=run.known_actor,
        account_id=key("Account", input.account_id, "accountId"),
        role=Role(input.role),
        dispensary_id=_place(input),
    )
    return row.id


@strawberry.input(description="Which account.")
class AccountInput:
    id: strawberry.ID = field(description="Whose.")


@mutation(
    "accountBlock",
    returns="Account",
    roles=ADMIN,
    refusals=(OwnAccount, LastSuperadmin),
    description="An account can do nothing more, at once, also on open subscriptions.",
)
async def account_block(run: Run, session: AsyncSession, input: AccountInput) -> int:
    row = await operations.block_account(
        session, actor=run.known_actor, account_id=key("Account", input.id, "id")
    )
    return row.id


@mutation(
    "accountUnblock", returns="Account", roles=ADMIN, description="A blocked account can sign in again."
)
async def account_unblock(run: Run, session: AsyncSession, input: AccountInput) -> int:
    row = await operations.unblock_account(
        session, actor=run.known_actor, account_id=key("Account", input.id, "id")
    )
    return row.id
