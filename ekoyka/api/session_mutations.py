"""Signing in and out, sessions, and new passwords."""

from __future__ import annotations

import strawberry
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.api.browsers import CrossSite
from ekoyka.api.clients import Fields, address_of, origin_of
from ekoyka.api.context import Run, Services
from ekoyka.api.identity_mutations import AccountInput
from ekoyka.api.mutations import Made, given, key, mutation
from ekoyka.api.permissions import ADMIN, ANYONE, SIGNED_IN
from ekoyka.api.scalars import ID, DateTime
from ekoyka.errors import Invalid
from ekoyka.graph import declare as graph
from ekoyka.identity import limits, operations, sessions
from ekoyka.identity.operations import EmailTaken, RegistrationClosed
from ekoyka.identity.sessions import (
    AccountBlocked,
    CredentialsWrong,
    Origin,
    ResetCodeWrong,
    SessionEnded,
    SignedIn,
)
from ekoyka.identity.tables import Account
from ekoyka.rates import attempt, forgive

field = strawberry.field
CHOICE_TEXT = (
    "At least 10 characters, at most 72 bytes: 72 Latin or 36 Cyrillic letters. None of the commonest passwords, "
    "and more than one's own name and address."
)


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


@graph.type_(
    description="A sign-in that the browser carries: its answer has set cookies, which no script reads. With every "
    "request send the value of the cookie that ends with `ekoyka_csrf` as `X-CSRF-Token`.",
    columns={"expires_at": "timestamptz", "ends_at": "timestamptz", "account_id": "bigint"},
)
class BrowserSession:
    """What a browser's sign-in gives."""

    expires_at: DateTime = graph.column("Until when requests are taken; `tokenRefresh` goes on.")
    ends_at: DateTime = graph.column("When the session ends by itself, however often it is renewed.")
    account: SignedInAccount | None = graph.one("account_id", "Whose it is.")


@graph.type_(table="account", description="Who has just signed in.")
class SignedInAccount:
    """An account at its sign-in."""

    account_id: ID = graph.key_of("Account", lambda row: f"{row}.id", "The account's id.")
    name: str = graph.column("The person's name.")


async def sign_in(
    services: Services, email: str, password: str, origin: Origin, *, browser: bool = False
) -> SignedIn:
    """A session is open.

    Raises `CredentialsWrong`, `AccountBlocked`, `RateLimited`. Whoever waits for a hash holds no connection.
    """
    async with services.sign_ins:
        found = await operations.find_credentials(services.database, email, origin.address)
        known = found is not None and found.known_there
        counted = limits.sign_in(email, origin.address, known_there=known)
        await attempt(services.database, *counted)
    if not await services.hasher.verify(password, found.password_hash if found else None) or found is None:
        raise CredentialsWrong
    async with services.database.transaction() as session:
        signed_in = await sessions.open_session(
            session,
            account_id=found.account_id,
            password_hash=found.password_hash,
            ttl_s=services.settings.refresh_token_ttl_s,
            origin=origin,
            browser=browser,
        )
    await forgive(services.database, counted[0])
    return signed_in


async def refresh(
    services: Services, refresh_token: str, origin: Origin, *, csrf_token: str | None = None
) -> SignedIn:
    """The session goes on, with the next refresh token. Raises `SessionEnded`, `CsrfTokenWrong`."""
    async with services.database.transaction() as session:
        signed_in = await sessions.refresh(
            session,
            refresh_token,
            origin=origin,
            same_address=services.settings.sessions_keep_address,
            csrf_token=csrf_token,
        )
    if signed_in is None:
        raise SessionEnded
    return signed_in


def _in_cookies(run: Run, wanted: bool) -> bool:
    """Whether the session is to be carried in cookies. Raises `CrossSite`, `Invalid`."""
    if wanted:
        if run.connection.scope["type"] != "http":
            raise Invalid(
                ("browser",),
                ru="Cookie передаются только в ответе по HTTP: отправьте запрос методом POST.",
                en="Cookies come with an HTTP answer alone: send this by POST.",
            )
        if not run.services.browsers.is_own(Fields(run.connection.scope["headers"])):
            raise CrossSite
    return wanted


def _made(run: Run, signed_in: SignedIn) -> tuple[str, Made]:
    """The tokens; of a browser's session in cookies, and never in the body."""
    token = run.services.tokens.issue(signed_in.actor, csrf_hash=signed_in.csrf_hash)
    values: Made = {"expires_at": token.expires_at, "account_id": signed_in.actor.account_id}
    if signed_in.csrf_hash is None:
        return "Tokens", {
            **values,
            "access_token": token.text,
            "refresh_token": signed_in.refresh_token,
        }
    run.cookies += run.services.browsers.signed_in(signed_in, token)
    return "BrowserSession", {**values, "ends_at": signed_in.ends_at}


async def _open(
    run: Run, session: AsyncSession, account_id: int, password_hash: str, *, browser: bool
) -> SignedIn:
    return await sessions.open_session(
        session,
        account_id=account_id,
        password_hash=password_hash,
        ttl_s=run.services.settings.refresh_token_ttl_s,
        origin=origin_of(run.connection),
        browser=browser,
    )


_BROWSER = (
    "True for a page in a browser: the session is carried in cookies, and the answer is a `BrowserSession`."
)


@strawberry.input(description="Credentials.")
class SignInInput:
    email: str = field(description="The e-mail address.")
    password: str = field(description="The password.")
    browser: bool = field(description=_BROWSER, default=False)


@mutation(
    "signIn",
    returns="Tokens",
    or_returns=("BrowserSession",),
    roles=ANYONE,
    refusals=(CredentialsWrong, AccountBlocked),
    description="Sign in. OAuth 2 clients use `POST /auth/token`.",
    transaction=False,
)
async def sign_in_mutation(run: Run, input: SignInInput) -> tuple[str, Made]:
    browser = _in_cookies(run, input.browser)
    origin = origin_of(run.connection)
    return _made(run, await sign_in(run.services, input.email, input.password, origin, browser=browser))


@strawberry.input(description="A refresh token.")
class TokenInput:
    refresh_token: str | None = field(
        description="The refresh token of the last sign-in or refresh; null for the one in a browser's cookie.",
        default=None,
    )


@mutation(
    "tokenRefresh",
    returns="Tokens",
    or_returns=("BrowserSession",),
    roles=ANYONE,
    refusals=(SessionEnded,),
    description="A new pair of tokens for the old one, which is used up; using it again ends the session. The pages "
    "of one browser share its token: let one of them refresh at a time (`navigator.locks`).",
    transaction=False,
)
async def token_refresh(run: Run, input: TokenInput) -> tuple[str, Made]:
    if input.refresh_token is not None:
        return _made(run, await refresh(run.services, input.refresh_token, origin_of(run.connection)))
    carried = run.carried
    if carried is None or carried.refresh_token is None:
        raise SessionEnded(("refreshToken",))
    _in_cookies(run, True)
    try:
        signed_in = await refresh(
            run.services,
            carried.refresh_token,
            origin_of(run.connection),
            csrf_token=carried.csrf_token,
        )
    except SessionEnded:
        run.cookies += run.services.browsers.signed_out()
        raise
    return _made(run, signed_in)


@graph.type_(description="Done.", columns={"done": "boolean"})
class SignedOut:
    """A sign-out."""

    done: bool = graph.column("Always true: the session is over, whether or not there was one.")


@mutation(
    "signOut",
    returns="SignedOut",
    roles=ANYONE,
    description="The session of this refresh token is over; the access token ends by itself within minutes. A "
    "browser's cookies are taken away.",
    transaction=False,
)
async def sign_out(run: Run, input: TokenInput) -> Made:
    refresh_token, csrf_token = input.refresh_token, None
    by_cookie = refresh_token is None and _in_cookies(run, run.carried is not None)
    if by_cookie and run.carried is not None:
        refresh_token, csrf_token = run.carried.refresh_token, run.carried.csrf_token
    if refresh_token is not None:
        async with run.database.transaction() as session:
            await sessions.end_session(session, refresh_token, csrf_token=csrf_token)
    if by_cookie:
        run.cookies += run.services.browsers.signed_out()
    return {"done": True}


@strawberry.input(description="A new account.")
class RegisterInput:
    email: str = field(description="The e-mail address to sign in with.")
    password: str = field(description=CHOICE_TEXT)
    name: str = field(description="The person's name, 1 to 200 characters.")
    language: str = field(description="The language for messages: ru or en.", default="ru")
    browser: bool = field(description=_BROWSER, default=False)


@mutation(
    "register",
    returns="Tokens",
    or_returns=("BrowserSession",),
    roles=ANYONE,
    refusals=(EmailTaken, AccountBlocked, RegistrationClosed),
    description="A person gets an account and is signed in, where the server lets anybody register.",
    transaction=False,
)
async def register(run: Run, input: RegisterInput) -> tuple[str, Made]:
    if not run.services.settings.registration_open:
        raise RegistrationClosed
    browser, address = _in_cookies(run, input.browser), address_of(run.connection)
    await attempt(run.database, *limits.registration(address), *limits.taken(address, told=False))
    hashed = await run.services.hasher.hash(input.password, about=(input.email, input.name))
    try:
        async with run.database.transaction() as session:
            account = await operations.register(
                session,
                email=input.email,
                password_hash=hashed,
                details={"name": input.name, "language": input.language},
            )
            signed_in = await _open(run, session, account.id, hashed, browser=browser)
    except EmailTaken:
        await attempt(run.database, *limits.taken(address, told=True))
        raise
    return _made(run, signed_in)


async def _new_hash(services: Services, password: str, account: Account) -> str:
    """The hash of what is to be the account's new password. Raises `Invalid`."""
    try:
        return await services.hasher.hash(password, about=(account.email, account.name))
    except Invalid as error:
        raise Invalid(("newPassword",), ru=error.fields["reason_ru"], en=error.fields["reason_en"]) from None


@strawberry.input(description="A change of one's own password.")
class PasswordChangeInput:
    password: str = field(description="The present password.")
    new_password: str = field(description=CHOICE_TEXT)


@mutation(
    "passwordChange",
    returns="Tokens",
    or_returns=("BrowserSession",),
    roles=SIGNED_IN,
    refusals=(CredentialsWrong, AccountBlocked),
    description="One's own password is changed: every session is over, and a new one is open, carried as the old "
    "one was.",
    transaction=False,
)
async def password_change(run: Run, input: PasswordChangeInput) -> tuple[str, Made]:
    actor, services = run.known_actor, run.services
    browser = _in_cookies(run, run.carried is not None)
    guesses = limits.password_change(actor.account_id)
    await attempt(services.database, guesses)
    async with services.database.transaction() as session:
        present = await operations.own_account(session, actor=actor)
    if not await services.hasher.verify(input.password, present.password_hash):
        raise CredentialsWrong(("password",))
    await forgive(services.database, guesses)
    hashed = await _new_hash(services, input.new_password, present)
    async with services.database.transaction() as session:
        account = await operations.change_password(session, actor=actor, password_hash=hashed)
        signed_in = await _open(run, session, account.id, hashed, browser=browser)
    return _made(run, signed_in)


@strawberry.input(description="Whether the session that asks goes on.")
class SignOutEverywhereInput:
    keep_this: bool = field(description="True: all others end; false: this one, too.", default=False)


@graph.type_(description="Sessions that are over.", columns={"ended": "int"})
class SignedOutEverywhere:
    """A sign-out everywhere."""

    ended: int = graph.column("How many sessions were open and are over now.")


@mutation(
    "signOutEverywhere",
    returns="SignedOutEverywhere",
    roles=SIGNED_IN,
    description="One's own sessions are over, and every access token with them, at once; open sockets are closed.",
)
async def sign_out_everywhere(run: Run, session: AsyncSession, input: SignOutEverywhereInput) -> Made:
    actor = run.known_actor
    kept = actor.session_id if input.keep_this else None
    return {"ended": await sessions.end_own_sessions(session, actor=actor, but=kept)}


@strawberry.input(description="Which session.")
class SessionInput:
    id: strawberry.ID = field(description="Its id, from `Account.sessions`.")


@mutation(
    "sessionEnd",
    returns="Session",
    roles=SIGNED_IN,
    description="One's own session, or for a superadministrator anybody's, is over at once. The account's access "
    "tokens end with it; its other sessions go on with their refresh tokens.",
)
async def session_end(run: Run, session: AsyncSession, input: SessionInput) -> int:
    return await sessions.end_session_of(
        session, actor=run.known_actor, session_id=key("Session", input.id, "id")
    )


@graph.type_(
    description="Leave to set a new password.", columns={"reset_code": "text", "expires_at": "timestamptz"}
)
class PasswordResetCode:
    """An administrator's code."""

    reset_code: str = graph.column(
        "Tell it to the person, and to nobody else; `passwordReset` takes it, once."
    )
    expires_at: DateTime = graph.column("Until when.")


@strawberry.input(description="An account for somebody.")
class AccountCreateInput:
    email: str = field(description="The e-mail address that they sign in with.")
    name: str = field(description="Their name, 1 to 200 characters.")
    position: str | None = field(description="Their position.", default=None)
    language: str = field(description="The language for messages: ru or en.", default="ru")


@mutation(
    "accountCreate",
    returns="PasswordResetCode",
    roles=ADMIN,
    refusals=(EmailTaken,),
    description="Somebody gets an account; with the code they set its password, by `passwordReset`.",
)
async def account_create(run: Run, session: AsyncSession, input: AccountCreateInput) -> Made:
    code, expires_at = await operations.create_account(
        session, actor=run.known_actor, email=input.email, details=given(input, without={"email"})
    )
    return {"reset_code": code, "expires_at": expires_at}


@mutation(
    "accountResetPassword",
    returns="PasswordResetCode",
    roles=ADMIN,
    description="The account's password is gone and its sessions are over; with the code its holder sets another.",
)
async def account_reset_password(run: Run, session: AsyncSession, input: AccountInput) -> Made:
    code, expires_at = await sessions.allow_reset(
        session, actor=run.known_actor, account_id=key("Account", input.id, "id")
    )
    return {"reset_code": code, "expires_at": expires_at}


@strawberry.input(description="A new password, by an administrator's leave.")
class PasswordResetInput:
    code: str = field(description="The administrator's code.")
    new_password: str = field(description=CHOICE_TEXT)
    browser: bool = field(description=_BROWSER, default=False)


@mutation(
    "passwordReset",
    returns="Tokens",
    or_returns=("BrowserSession",),
    roles=ANYONE,
    refusals=(ResetCodeWrong, AccountBlocked),
    description="A new password is set by an administrator's code, and its holder is signed in.",
    transaction=False,
)
async def password_reset(run: Run, input: PasswordResetInput) -> tuple[str, Made]:
    services = run.services
    browser = _in_cookies(run, input.browser)
    await attempt(services.database, *limits.password_reset(address_of(run.connection)))
    async with services.database.transaction() as session:
        holder = await sessions.holder_of_code(session, input.code)
    hashed = await _new_hash(services, input.new_password, holder)
    async with services.database.transaction() as session:
        account_id = await sessions.reset_password(session, code=input.code, password_hash=hashed)
        signed_in = await _open(run, session, account_id, hashed, browser=browser)
    return _made(run, signed_in)
