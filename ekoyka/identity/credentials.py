"""Passwords and tokens; knows no database.

Passwords are bcrypt hashes made in a bounded pool of threads. Access tokens are JWTs signed with HS256 and
nothing else, checked for issuer, audience, expiry and key.
"""

import asyncio
import hashlib
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

import bcrypt
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OctKey

from ekoyka.cache import Cache
from ekoyka.identity.actors import Actor
from ekoyka.identity.passwords import LONGEST_PASSWORD_BYTES, check_password
from ekoyka.rates import RateLimited
from ekoyka.settings import Mode, Settings

_LONGEST_TOKEN = 8192
TOKENS_KEPT = 10_000
# Of the threads that hash, the lowest priority there is: beside a busy thread such a one gets a sixtieth of a core.
NICENESS = 19
_ALGORITHM = "HS256"
_Result = TypeVar("_Result")


class NotAuthenticated(Exception):
    """The token is not good, or its account is no longer what it was; the text is a code, never the token."""


class SettingsIncomplete(Exception):
    """A setting without which the server does not start; the text says which and how to make one."""


class PasswordHasher:
    """Hashes and verifies passwords in a few threads that all else goes before, so that sign-ins hold nothing up.

    Nobody waits longer than ``patience_s``: raises `RateLimited`, at once where it is clear from the beginning.
    """

    def __init__(self, rounds: int, *, threads: int | None = None, patience_s: float = 13.0) -> None:
        self._rounds = rounds
        self._patience_s = patience_s
        self._under_way = 0
        self._size = threads or _cores()
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="bcrypt", initializer=_give_way)
        began = time.perf_counter()
        # What the password of an unknown account is compared with, so that it takes the same time.
        self._nobody = bcrypt.hashpw(secrets.token_bytes(16).hex().encode(), bcrypt.gensalt(rounds))
        # How long one takes, of late.
        self._takes_s = time.perf_counter() - began

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        wait_s = self._under_way // self._size * self._takes_s
        if wait_s > self._patience_s:
            raise RateLimited(ceil(wait_s))

        def timed() -> _Result:
            began = time.perf_counter()
            result = work()
            self._takes_s += (time.perf_counter() - began - self._takes_s) / 4
            return result

        self._under_way += 1
        try:
            async with asyncio.timeout(self._patience_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, timed)
        except TimeoutError:
            raise RateLimited(ceil(self._patience_s)) from None
        finally:
            self._under_way -= 1

    async def hash(self, password: str, *, about: Iterable[str] = ()) -> str:
        """The password's hash. Raises `Invalid` for one that may not be chosen by whom these texts are about."""
        check_password(password, about=about)
        hashed = await self._in_thread(lambda: bcrypt.hashpw(password.encode(), bcrypt.gensalt(self._rounds)))
        return hashed.decode()

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether the password is the hash's; without a hash it is not, after the same time."""
        raw = password.encode("utf-8", "surrogatepass")
        good = len(raw) <= LONGEST_PASSWORD_BYTES and b"\x00" not in raw
        # Accounts that nobody signs in as hold no hash of a password at all.
        known = password_hash is not None and password_hash.startswith("$2")
        against = password_hash.encode() if known and password_hash else self._nobody
        matches = await self._in_thread(lambda: self._compared(raw if good else b"-", against))
        return matches and good and known

    def _compared(self, raw: bytes, against: bytes) -> bool:
        """Whether the password is the hash's, after the time that a hash of today's cost takes.

        One that was made when the setting was lower would be known by its answer's coming early.
        """
        matches = bcrypt.checkpw(raw, against)
        for rounds in range(int(against[4:6]), self._rounds):
            bcrypt.hashpw(b"-", bcrypt.gensalt(rounds))
        return matches

    def close(self) -> None:
        """The threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An access token as handed out."""

    text: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class ReadToken:
    """What a good access token says; a browser's also what its CSRF token's digest is."""

    actor: Actor
    expires_at_s: float
    csrf_hash: bytes | None = None

    @property
    def expires_at(self) -> datetime:
        """Until when it is good."""
        return datetime.fromtimestamp(self.expires_at_s, UTC)


class Tokens:
    """Signs and reads tokens. The first key signs, all verify, so that keys can be rotated."""

    def __init__(self, keys: Sequence[str], *, issuer: str, ttl_s: int, audience: str = "ekoyka") -> None:
        if not keys or any(len(key.encode()) < 32 for key in keys):
            raise SettingsIncomplete("Each token key needs at least 32 bytes.")
        self._keys = KeySet(
            [
                OctKey.import_key(
                    key,
                    {"kid": hashlib.sha256(key.encode()).hexdigest()[:16], "alg": _ALGORITHM, "use": "sig"},
                )
                for key in keys
            ]
        )
        self._signing = self._keys.keys[0]
        self._issuer = issuer
        self._audience = audience
        self._ttl_s = ttl_s
        # What good tokens say, by their text: a signature is checked once, the expiry each time.
        self._good: Cache[str, ReadToken] = Cache(TOKENS_KEPT)

    def _claims(self, text: str) -> dict[str, Any]:
        if len(text) > _LONGEST_TOKEN:
            raise NotAuthenticated("oversized")
        try:
            token = jwt.decode(text, self._keys, algorithms=[_ALGORITHM])
            jwt.JWTClaimsRegistry(
                iss={"essential": True, "value": self._issuer},
                aud={"essential": True, "value": self._audience},
                exp={"essential": True},
                iat={"essential": True},
                sub={"essential": True},
            ).validate(token.claims)
        except (JoseError, ValueError, TypeError, KeyError, UnicodeError) as error:
            raise NotAuthenticated(type(error).__name__) from None
        return dict(token.claims)

    def issue(self, actor: Actor, *, csrf_hash: bytes | None = None) -> AccessToken:
        """An access token for the actor as they are now; a browser's is good beside its CSRF token alone."""
        now = int(time.time())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "iat": now,
            "exp": now + self._ttl_s,
            "sub": str(actor.account_id),
            "jti": secrets.token_urlsafe(12),
            "sid": actor.session_id,
            "ver": actor.auth_version,
            "sa": actor.superadmin,
            "doc": sorted(actor.doctor_of),
            "dsp": sorted(actor.dispatcher_of),
        }
        if csrf_hash is not None:
            claims["csrf"] = csrf_hash.hex()
        header = {"alg": _ALGORITHM, "kid": self._signing.kid, "typ": "JWT"}
        text = jwt.encode(header, claims, self._signing, algorithms=[_ALGORITHM])
        return AccessToken(text, datetime.fromtimestamp(now + self._ttl_s, UTC))

    def read(self, text: str) -> ReadToken:
        """The actor in an access token. Raises `NotAuthenticated`."""
        token = self._good.get(text)
        if token is None:
            token = self._read(text)
            self._good.put(text, token)
        if token.expires_at_s <= time.time():
            raise NotAuthenticated("ExpiredTokenError")
        return token

    def _read(self, text: str) -> ReadToken:
        claims = self._claims(text)
        try:
            actor = Actor(
                account_id=int(claims["sub"]),
                auth_version=int(claims["ver"]),
                superadmin=claims["sa"] is True,
                doctor_of=frozenset(int(item) for item in claims["doc"]),
                dispatcher_of=frozenset(int(item) for item in claims["dsp"]),
                session_id=int(claims["sid"]) if claims.get("sid") is not None else None,
            )
            csrf_hash = bytes.fromhex(claims["csrf"]) if "csrf" in claims else None
        except (KeyError, TypeError, ValueError) as error:
            raise NotAuthenticated(type(error).__name__) from None
        return ReadToken(actor, float(claims["exp"]), csrf_hash)


def _cores() -> int:
    """How many the process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _give_way() -> None:
    """The thread has a core where nothing else of the server wants it; else bcrypt would hold it for whole seconds.

    It holds the interpreter for no more than microseconds a hash, so that nothing waits for who must wait itself.
    """
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def load_keys(settings: Settings) -> list[str]:
    """The signing keys: from the settings; a demonstration makes one and keeps it in its data folder.

    Raises `SettingsIncomplete` in production without any.
    """
    if settings.token_keys:
        return [key.get_secret_value() for key in settings.token_keys]
    if settings.mode is Mode.PRODUCTION:
        raise SettingsIncomplete(
            "EKOYKA_TOKEN_KEYS is not set: it signs access tokens and has no default. "
            'Make one with: python3 -c "import secrets; print(secrets.token_urlsafe(48))"'
        )
    return [_kept_key(settings.data_dir / "token-key")]


def _kept_key(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: writing to what a killed process left could write to the key itself.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    draft.touch(mode=0o600)
    draft.write_text(secrets.token_urlsafe(48))
    try:
        # Whoever links first made the key; everybody reads that one.
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_text()
