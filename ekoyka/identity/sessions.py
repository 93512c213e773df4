"""Sessions: sign-ins that last. Each has a chain of refresh tokens, kept as digests, each good for one use.

An access token ends by itself within minutes; where it must end at once, the account's ``auth_version`` is
raised, and the other sessions' clients get new ones for their refresh tokens.

A browser's session also has a CSRF token, kept as a digest, for as long as it lasts. It is random and not
derived from a signing key: keys are rotated within minutes, and sessions go on.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import func, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from ekoyka import feed
from ekoyka.errors import NotFound, Refusal
from ekoyka.identity.actors import Actor
from ekoyka.identity.queries import account_topic, actor_of, confirm
from ekoyka.identity.tables import AccessEntry, Account, PasswordReset, RefreshToken, Role, Session

log = structlog.get_logger(__name__)

LONGEST_CLIENT = 200
# Of an administrator's code for a new password: to be read out on the telephone and typed at once.
RESET_TTL_S = 3600


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


class ResetCodeWrong(Refusal):
    """The code for a new password is unknown, used or expired."""

    code = "RESET_CODE_WRONG"
    ru = "Код неверен, уже использован или устарел: попросите администратора о новом."
    en = "The code is wrong, used or too old: ask the administrator for another."


class CsrfTokenWrong(Exception):
    """What cookies carry came without the CSRF token of their session."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from: its network address, and what the client calls itself."""

    address: str | None = None
    client: str | None = None


@dataclass(frozen=True, slots=True)
class SignedIn:
    """What a sign-in or refresh gives: who it is, the next refresh token, and when the session ends by itself.

    In a browser's session also the CSRF token, told once, and what is kept of it.
    """

    actor: Actor
    refresh_token: str
    ends_at: datetime
    csrf_hash: bytes | None = None
    csrf_token: str | None = None


NOWHERE = Origin()


def digest(token: str) -> bytes:
    """What is kept of a secret that was handed out."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def is_csrf_token(given: str, csrf_hash: bytes) -> bool:
    """Whether this is the CSRF token whose digest was kept; takes the same time for any."""
    return hmac.compare_digest(digest(given), csrf_hash)


async def open_session(
    session: AsyncSession,
    *,
    account_id: int,
    password_hash: str | None,
    ttl_s: int,
    origin: Origin = NOWHERE,
    browser: bool = False,
) -> SignedIn:
    """A session is open, for whoever knew the password of this hash; None where another has vouched for them.

    Raises `CredentialsWrong` when the account has another by now, and `AccountBlocked`.
    """
    # Waits for a blocking or new password under way, and lets the next one see this session and end it.
    present = await session.scalar(
        text("SELECT password_hash FROM account WHERE id = :id FOR KEY SHARE"), {"id": account_id}
    )
    if password_hash is not None and present != password_hash:
        raise CredentialsWrong
    actor = await actor_of(session, account_id)
    if actor is None:
        raise AccountBlocked
    csrf_token = secrets.token_urlsafe(32) if browser else None
    row = Session(
        account_id=account_id,
        expires_at=datetime.now(UTC) + timedelta(seconds=ttl_s),
        address=origin.address,
        client=(origin.client or "")[:LONGEST_CLIENT] or None,
        csrf_hash=digest(csrf_token) if csrf_token else None,
    )
    session.add(row)
    await session.flush()
    return SignedIn(
        replace(actor, session_id=row.id),
        await _next_token(session, row.id),
        row.expires_at,
        row.csrf_hash,
        csrf_token,
    )


async def _next_token(session: AsyncSession, session_id: int) -> str:
    token = secrets.token_urlsafe(32)
    session.add(RefreshToken(session_id=session_id, hash=digest(token)))
    await session.flush()
    return token


# One use at a time, and none while the session is being ended: it must not outlive that by a token.
_ALIVE = text(
    """
    SELECT s.id, s.account_id, s.address, s.expires_at, s.csrf_hash
    FROM refresh_token r JOIN session s ON s.id = r.session_id
    WHERE r.hash = :hash AND s.ended_at IS NULL AND s.expires_at > now()
    FOR NO KEY UPDATE OF s
    """
)
_USE = text(
    "UPDATE refresh_token SET used_at = clock_timestamp() WHERE hash = :hash AND used_at IS NULL RETURNING true"
)
_USED = text(
    "UPDATE session SET last_used_at = clock_timestamp(), address = coalesce(:address, address), "
    "client = coalesce(:client, client) WHERE id = :id"
)
_END = text("UPDATE session SET ended_at = clock_timestamp() WHERE id = :id")


async def refresh(
    session: AsyncSession,
    refresh_token: str,
    *,
    origin: Origin = NOWHERE,
    same_address: bool = False,
    csrf_token: str | None = None,
) -> SignedIn | None:
    """The token is used up and the next one given; None when it is no good.

    A token used a second time has been stolen from somebody: its whole session is ended, which must be
    committed, so this is an answer and not a refusal (RFC 9700, 4.14.2). Another network address than the
    session's last one is noted in the access log; with ``same_address`` it is refused. A token that came in a
    cookie comes with a ``csrf_token``. Raises `CsrfTokenWrong`, and nothing has happened.
    """
    hashed = digest(refresh_token)
    alive = (await session.execute(_ALIVE, {"hash": hashed})).one_or_none()
    if alive is None or (alive.csrf_hash is None) != (csrf_token is None):
        # A browser's token is good in its cookie alone, and a program's nowhere but in a body.
        return None
    if csrf_token is not None and not is_csrf_token(csrf_token, alive.csrf_hash):
        raise CsrfTokenWrong
    moved = None not in (alive.address, origin.address) and alive.address != origin.address
    if moved:
        _note(session, "session_address_change", alive.account_id, alive.id)
        if same_address:
            log.warning("session_address_refused", session=alive.id)
            return None
    if not await session.scalar(_USE, {"hash": hashed}):
        await session.execute(_END, {"id": alive.id})
        _note(session, "refresh_token_reuse", alive.account_id, alive.id)
        log.warning("refresh_token_reused", session=alive.id)
        return None
    actor = await actor_of(session, alive.account_id)
    if actor is None:
        return None
    client = (origin.client or "")[:LONGEST_CLIENT] or None
    await session.execute(_USED, {"id": alive.id, "address": origin.address, "client": client})
    return SignedIn(
        replace(actor, session_id=alive.id),
        await _next_token(session, alive.id),
        alive.expires_at,
        alive.csrf_hash,
    )


def _note(session: AsyncSession, action: str, account_id: int, session_id: int) -> None:
    session.add(
        AccessEntry(account_id=account_id, action=action, object_type="Session", object_id=session_id)
    )


async def end_session(session: AsyncSession, refresh_token: str, *, csrf_token: str | None = None) -> None:
    """The session of this refresh token, if there is one, is over.

    A token that came in a cookie comes with a ``csrf_token``. Raises `CsrfTokenWrong`, and nothing has happened.
    """
    ended = (
        await session.execute(
            text(
                "UPDATE session s SET ended_at = clock_timestamp() FROM refresh_token r "
                "WHERE r.hash = :hash AND s.id = r.session_id AND s.ended_at IS NULL RETURNING s.csrf_hash"
            ),
            {"hash": digest(refresh_token)},
        )
    ).one_or_none()
    if ended is not None and csrf_token is not None and not is_csrf_token(csrf_token, ended.csrf_hash or b""):
        raise CsrfTokenWrong


async def end_session_of(session: AsyncSession, *, actor: Actor, session_id: int) -> int:
    """The session is over, with every access token of its account: the other sessions' clients get new ones.

    One's own, or anybody's for a superadministrator. Raises `NotFound`.
    """
    account_id = await session.scalar(
        text("SELECT account_id FROM session WHERE id = :id"), {"id": session_id}
    )
    if account_id is None or (account_id != actor.account_id and Role.SUPERADMIN not in actor.roles):
        raise NotFound(("id",))
    account = await session.get(Account, account_id, with_for_update=True)
    assert account is not None
    await confirm(session, actor)
    ended = await session.scalar(
        text(
            "UPDATE session SET ended_at = clock_timestamp() WHERE id = :id AND ended_at IS NULL RETURNING id"
        ),
        {"id": session_id},
    )
    if ended is not None:
        _note(session, "session_end", actor.account_id, session_id)
        await authority_changed(session, account)
    return session_id


async def end_own_sessions(session: AsyncSession, *, actor: Actor, but: int | None) -> int:
    """All sessions of the actor are over, but this one if it is named; and every access token. How many ended."""
    account = await session.get(Account, actor.account_id, with_for_update=True)
    assert account is not None
    await confirm(session, actor)
    ended = await end_sessions(session, account.id, but=but)
    await authority_changed(session, account)
    return ended


async def end_sessions(session: AsyncSession, account_id: int, *, but: int | None = None) -> int:
    """The account's sessions are over, but this one if it is named. How many ended."""
    ended = await session.execute(
        text(
            "UPDATE session SET ended_at = clock_timestamp() WHERE account_id = :account AND ended_at IS NULL "
            "AND id IS DISTINCT FROM CAST(:but AS bigint) RETURNING id"
        ),
        {"account": account_id, "but": but},
    )
    return len(ended.all())


async def authority_changed(session: AsyncSession, account: Account) -> None:
    """Whatever was issued to the account before is worth nothing; its open sockets are told."""
    account.auth_version += 1
    account.version += 1
    await feed.publish(session, account_topic(account.id), {})


# No password has this hash.
NO_PASSWORD = "-"  # noqa: S105 -- it is none


async def allow_reset(session: AsyncSession, *, actor: Actor, account_id: int) -> tuple[str, datetime]:
    """The account's password is gone and its sessions are over; with the code, its holder sets another one.

    The code, which is kept as a digest alone, and until when it is good. Raises `NotFound`.
    """
    account = await session.get(Account, account_id, with_for_update=True)
    if account is None:
        raise NotFound(("id",))
    account.password_hash = NO_PASSWORD
    await end_sessions(session, account_id)
    code = secrets.token_urlsafe(15)
    expires_at = datetime.now(UTC) + timedelta(seconds=RESET_TTL_S)
    await session.execute(
        text(
            "UPDATE password_reset SET used_at = clock_timestamp() WHERE account_id = :id AND used_at IS NULL"
        ),
        {"id": account_id},
    )
    session.add(
        PasswordReset(
            account_id=account_id, hash=digest(code), expires_at=expires_at, issued_by_id=actor.account_id
        )
    )
    session.add(
        AccessEntry(
            account_id=actor.account_id,
            action="password_reset_allow",
            object_type="Account",
            object_id=account_id,
            request_id=actor.request_id,
        )
    )
    await authority_changed(session, account)
    return code, expires_at


async def holder_of_code(session: AsyncSession, code: str) -> Account:
    """Who may set a new password by this code. Raises `ResetCodeWrong`."""
    account = await session.scalar(
        select(Account)
        .join(PasswordReset, col(PasswordReset.account_id) == Account.id)
        .where(
            PasswordReset.hash == digest(code),
            col(PasswordReset.used_at).is_(None),
            col(PasswordReset.expires_at) > func.now(),
        )
    )
    if account is None:
        raise ResetCodeWrong(("code",))
    return account


async def reset_password(session: AsyncSession, *, code: str, password_hash: str) -> int:
    """The code is used up and the account's password is this. The account's key. Raises `ResetCodeWrong`."""
    account_id: int | None = await session.scalar(
        text(
            "UPDATE password_reset SET used_at = clock_timestamp() "
            "WHERE hash = :hash AND used_at IS NULL AND expires_at > now() RETURNING account_id"
        ),
        {"hash": digest(code)},
    )
    if account_id is None:
        raise ResetCodeWrong(("code",))
    account = await session.get(Account, account_id, with_for_update=True)
    assert account is not None
    account.password_hash = password_hash
    session.add(
        AccessEntry(
            account_id=account_id, action="password_reset", object_type="Account", object_id=account_id
        )
    )
    await authority_changed(session, account)
    return account_id
