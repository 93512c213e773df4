"""Passwords, tokens and their keys: what is good is taken, what is forged is not."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import time_machine

from ekoyka import links
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import (
    NotAuthenticated,
    PasswordHasher,
    SettingsIncomplete,
    Tokens,
    load_keys,
)
from ekoyka.settings import Mode, Settings

KEY = "k" * 48
NEXT_KEY = "n" * 48
ACTOR = Actor(
    account_id=7,
    auth_version=3,
    superadmin=True,
    doctor_of=frozenset({1, 2}),
    dispatcher_of=frozenset({5}),
)


@pytest.fixture
async def hasher() -> AsyncIterator[PasswordHasher]:
    """A quick hasher."""
    hasher = PasswordHasher(4)
    yield hasher
    hasher.close()


@pytest.fixture
def tokens() -> Tokens:
    """Tokens of one key."""
    return Tokens([KEY], issuer="ekoyka", ttl_s=600)


# Passwords


async def test_a_hash_is_verified_by_its_password_alone(hasher: PasswordHasher) -> None:
    hashed = await hasher.hash("верный пароль")

    assert hashed.startswith("$2b$04$")
    assert await hasher.verify("верный пароль", hashed)
    assert not await hasher.verify("Верный пароль", hashed)
    assert not await hasher.verify("", hashed)


async def test_two_hashes_of_one_password_differ(hasher: PasswordHasher) -> None:
    assert await hasher.hash("верный пароль") != await hasher.hash("верный пароль")


@pytest.mark.parametrize("ending", ["b", "\x00", "\ud800"])
async def test_a_longer_password_with_the_same_beginning_is_wrong(
    hasher: PasswordHasher, ending: str
) -> None:
    longest = "correct horse " * 5 + "is"
    hashed = await hasher.hash(longest)

    assert len(longest) == 72
    assert not await hasher.verify(longest + ending, hashed)


@pytest.mark.parametrize("password", ["-", "x" * 100_000, "\x00" * 12, "\ud800\udfff"])
async def test_hostile_guesses_are_simply_wrong(hasher: PasswordHasher, password: str) -> None:
    # "-" is what stands in for a guess that bcrypt cannot take.
    hashed = bcrypt.hashpw(b"-", bcrypt.gensalt(4)).decode()

    assert await hasher.verify(password, hashed) is (password == "-")


@pytest.mark.parametrize("password", ["верный пароль", "x" * 100])
async def test_an_unknown_account_costs_the_same_comparison(
    hasher: PasswordHasher, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []
    check = bcrypt.checkpw

    def counted(guess: bytes, against: bytes) -> bool:
        compared.append(against)
        return check(guess, against)

    monkeypatch.setattr(bcrypt, "checkpw", counted)

    assert not await hasher.verify(password, None)
    assert [against[:7] for against in compared] == [b"$2b$04$"]


# Tokens


def encoded(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def kid_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def claims(**other: Any) -> dict[str, Any]:
    now = int(time.time())
    good = {
        "iss": "ekoyka",
        "aud": "ekoyka",
        "iat": now,
        "exp": now + 600,
        "sub": "7",
        "jti": "j",
        "ver": 3,
        "sa": True,
        "doc": [1, 2],
        "dsp": [5],
    }
    return {name: value for name, value in {**good, **other}.items() if value is not ...}


def signed(
    content: object,
    *,
    key: bytes = KEY.encode(),
    algorithm: str = "HS256",
    digest: str = "sha256",
    **header: Any,
) -> str:
    """A JWT made by hand, so that what joserfc would refuse to write can be read."""
    head = {"alg": algorithm, "kid": kid_of(KEY), "typ": "JWT", **header}
    text = f"{encoded({name: value for name, value in head.items() if value is not ...})}.{encoded(content)}"
    return f"{text}.{encoded(hmac.digest(key, text.encode(), digest))}"


def unsigned(algorithm: str) -> str:
    return f"{encoded({'alg': algorithm, 'kid': kid_of(KEY), 'typ': 'JWT'})}.{encoded(claims())}."


def oct_jwk(key: bytes) -> dict[str, str]:
    return {"kty": "oct", "k": encoded(key), "kid": kid_of(KEY)}


ATTACKERS = b"a" * 48
FORGERIES: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "not a token": lambda: "token",
    "not ascii": lambda: "тóкен.ж.ё",
    "half a surrogate": lambda: "\ud800.a.b",
    "a null byte": lambda: signed(claims()) + "\x00",
    "alg none": lambda: unsigned("none"),
    "alg None": lambda: unsigned("None"),
    "alg absent": lambda: signed(claims(), algorithm=...),  # type: ignore[arg-type]
    "alg a number": lambda: signed(claims(), algorithm=256),  # type: ignore[arg-type]
    "another hash with the right key": lambda: signed(claims(), algorithm="HS512", digest="sha512"),
    "another hash under the right name": lambda: signed(claims(), digest="sha512"),
    "the name of another algorithm": lambda: signed(claims(), algorithm="RS256"),
    "a stranger's key": lambda: signed(claims(), key=ATTACKERS),
    "an empty key": lambda: signed(claims(), key=b""),
    "the key's id as the key": lambda: signed(claims(), key=kid_of(KEY).encode()),
    "the download addresses' key": lambda: signed(claims(), key=links.derive(KEY)),
    "an unknown kid": lambda: signed(claims(), kid="0123456789abcdef"),
    "a stranger's kid and key": lambda: signed(claims(), key=ATTACKERS, kid=kid_of(ATTACKERS.decode())),
    "a kid that is a path": lambda: signed(claims(), key=b"", kid="../../../../dev/null"),
    "a kid that is SQL": lambda: signed(claims(), key=ATTACKERS, kid="' OR '1'='1"),
    "a kid that is a list": lambda: signed(claims(), kid=[kid_of(KEY)]),
    "a kid that is an object": lambda: signed(claims(), kid={"a": 1}),
    "a jwk header": lambda: signed(claims(), key=ATTACKERS, jwk=oct_jwk(ATTACKERS)),
    "a jwk header and no kid": lambda: signed(claims(), key=ATTACKERS, jwk=oct_jwk(ATTACKERS), kid=...),
    "a jku header": lambda: signed(claims(), key=ATTACKERS, jku="https://example.org/keys.json"),
    "an x5u header": lambda: signed(claims(), key=ATTACKERS, x5u="https://example.org/chain.pem"),
    "an unknown critical header": lambda: signed(claims(), crit=["exp"], exp=1),
    "an unencoded payload": lambda: signed(claims(), crit=["b64"], b64=False),
    "no signature": lambda: signed(claims()).rpartition(".")[0] + ".",
    "two parts": lambda: signed(claims()).rpartition(".")[0],
    "five parts": lambda: signed(claims()) + ".a.b",
    "a truncated signature": lambda: signed(claims())[:-4],
    "a changed payload": lambda: ".".join(
        (signed(claims()).split(".")[0], encoded(claims(sub="1")), signed(claims()).split(".")[2])
    ),
    "a header that is a list": lambda: f"{encoded([])}.{encoded(claims())}.{encoded(b'x')}",
    "a deep header": lambda: f"{encoded(b'[' * 380)}.{encoded(claims())}.{encoded(b'x')}",
    "a header that is not JSON": lambda: f"{encoded(b'{')}.{encoded(claims())}.{encoded(b'x')}",
    "claims that are a list": lambda: signed([claims()]),
    "claims that are not JSON": lambda: signed(b"{"),
    "too long": lambda: signed(claims(pad="x" * 9000)),
    "another issuer": lambda: signed(claims(iss="elsewhere")),
    "no issuer": lambda: signed(claims(iss=...)),
    "another audience": lambda: signed(claims(aud="certificate-download")),
    "no audience": lambda: signed(claims(aud=...)),
    "expired": lambda: signed(claims(exp=int(time.time()) - 1)),
    "no expiry": lambda: signed(claims(exp=...)),
    "an expiry of null": lambda: signed(claims(exp=None)),
    "an expiry that is text": lambda: signed(claims(exp="9999999999")),
    "an expiry that is true": lambda: signed(claims(exp=True)),
    "an expiry that is not a number": lambda: signed(claims(exp=float("nan"))),
    "an endless expiry": lambda: signed(claims(exp=float("inf"))),
    "issued in the future": lambda: signed(claims(iat=int(time.time()) + 100)),
    "not yet valid": lambda: signed(claims(nbf=int(time.time()) + 100)),
    "no account": lambda: signed(claims(sub=...)),
    "an account that is a number": lambda: signed(claims(sub=7)),
    "an account that is a name": lambda: signed(claims(sub="admin")),
    "no version": lambda: signed(claims(ver=...)),
    "no roles": lambda: signed(claims(doc=...)),
    "roles that are not a list": lambda: signed(claims(dsp=5)),
    "roles that are not ids": lambda: signed(claims(doc=["x"])),
    "a download address": lambda: links.name(links.derive(KEY), "7", int(time.time()) + 100),
}


def test_a_token_made_by_hand_is_good(tokens: Tokens) -> None:
    """Otherwise the forgeries, made the same way, would be refused for the wrong reason."""
    assert tokens.read(signed(claims())).actor == ACTOR


@pytest.mark.parametrize("forgery", FORGERIES)
def test_read_refuses_and_does_not_repeat(tokens: Tokens, forgery: str) -> None:
    with pytest.raises(NotAuthenticated) as refused:
        tokens.read(FORGERIES[forgery]())

    assert str(refused.value).isidentifier()
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_a_token_says_who_it_was_issued_for(tokens: Tokens) -> None:
    with time_machine.travel("2026-03-01T12:00:00Z", tick=False):
        issued = tokens.issue(ACTOR)
        read = tokens.read(issued.text)

    assert read.actor == Actor(
        account_id=7,
        auth_version=3,
        superadmin=True,
        doctor_of=frozenset({1, 2}),
        dispatcher_of=frozenset({5}),
    )
    assert read.expires_at == issued.expires_at
    assert issued.expires_at.isoformat() == "2026-03-01T12:10:00+00:00"


def test_a_token_without_roles_gives_none(tokens: Tokens) -> None:
    actor = Actor(account_id=9_007_199_254_740_993, auth_version=1)

    assert tokens.read(tokens.issue(actor).text).actor == actor


def test_only_true_makes_a_superadmin(tokens: Tokens) -> None:
    assert not tokens.read(signed(claims(sa="true"))).actor.superadmin
    assert not tokens.read(signed(claims(sa=1))).actor.superadmin


def test_a_token_ends_at_its_expiry(tokens: Tokens) -> None:
    with time_machine.travel("2026-03-01T12:00:00Z", tick=False) as clock:
        text = tokens.issue(ACTOR).text

        clock.shift(599)
        tokens.read(text)
        clock.shift(1)
        with pytest.raises(NotAuthenticated, match="ExpiredTokenError"):
            tokens.read(text)


def test_two_tokens_of_one_second_differ(tokens: Tokens) -> None:
    with time_machine.travel("2026-03-01T12:00:00Z", tick=False):
        assert tokens.issue(ACTOR).text != tokens.issue(ACTOR).text


def test_the_header_names_algorithm_and_key(tokens: Tokens) -> None:
    head = tokens.issue(ACTOR).text.split(".")[0]

    header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))

    assert header == {"alg": "HS256", "kid": kid_of(KEY), "typ": "JWT"}


def test_keys_are_rotated_without_ending_a_token(tokens: Tokens) -> None:
    rotated = Tokens([NEXT_KEY, KEY], issuer="ekoyka", ttl_s=600)

    assert rotated.read(tokens.issue(ACTOR).text).actor == ACTOR
    assert rotated.read(rotated.issue(ACTOR).text).actor == ACTOR
    with pytest.raises(NotAuthenticated):
        tokens.read(rotated.issue(ACTOR).text)


def test_a_key_that_was_taken_out_signs_nothing_any_more(tokens: Tokens) -> None:
    text = tokens.issue(ACTOR).text

    with pytest.raises(NotAuthenticated):
        Tokens([NEXT_KEY], issuer="ekoyka", ttl_s=600).read(text)


def test_tokens_of_another_installation_are_refused(tokens: Tokens) -> None:
    text = Tokens([KEY], issuer="another", ttl_s=600).issue(ACTOR).text

    with pytest.raises(NotAuthenticated):
        tokens.read(text)


@pytest.mark.parametrize("keys", [[], ["k" * 31], [KEY, "short"], [""]])
def test_short_keys_are_refused(keys: list[str]) -> None:
    with pytest.raises(SettingsIncomplete):
        Tokens(keys, issuer="ekoyka", ttl_s=600)


def test_a_key_is_as_long_as_its_bytes() -> None:
    Tokens(["ж" * 16], issuer="ekoyka", ttl_s=600)


def test_an_access_token_opens_no_download(tokens: Tokens) -> None:
    assert links.read([links.derive(KEY)], tokens.issue(ACTOR).text) is None


# Keys


def test_keys_come_from_the_settings(tmp_path: Path) -> None:
    settings = Settings(mode=Mode.DEMO, data_dir=tmp_path, token_keys=f"{NEXT_KEY}, {KEY}")

    assert load_keys(settings) == [NEXT_KEY, KEY]
    assert not list(tmp_path.iterdir())


def test_production_does_not_start_without_a_key(tmp_path: Path) -> None:
    settings = Settings(mode=Mode.PRODUCTION, data_dir=tmp_path / "data", token_keys=())

    with pytest.raises(SettingsIncomplete, match=r"EKOYKA_TOKEN_KEYS.*secrets\.token_urlsafe"):
        load_keys(settings)

    assert not settings.data_dir.exists()


def test_a_demonstration_makes_a_key_once_and_keeps_it_to_itself(tmp_path: Path) -> None:
    settings = Settings(mode=Mode.DEMO, data_dir=tmp_path / "deep" / "data", token_keys=())

    keys = load_keys(settings)

    assert load_keys(settings) == keys
    Tokens(keys, issuer="ekoyka", ttl_s=600)
    kept = list(settings.data_dir.iterdir())
    assert [path.name for path in kept] == ["token-key"]
    assert kept[0].stat().st_mode & 0o777 == 0o600


def test_processes_that_start_at_once_agree_on_the_key(tmp_path: Path) -> None:
    settings = Settings(mode=Mode.DEMO, data_dir=tmp_path, token_keys=())

    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda _: load_keys(settings)[0], range(40)))

    assert len(set(keys)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["token-key"]
