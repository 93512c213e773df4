"""Which passwords may be chosen, and what is said of those that may not."""

import tracemalloc
from collections.abc import AsyncIterator

import pytest

from ekoyka import demo
from ekoyka.errors import Invalid
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import PasswordHasher
from ekoyka.identity.passwords import check_password
from tests.client import Client, gid
from tests.factories import Factory

GOOD = "ноябрь велосипед 38"


@pytest.fixture
async def hasher() -> AsyncIterator[PasswordHasher]:
    """A quick hasher."""
    hasher = PasswordHasher(4)
    yield hasher
    hasher.close()


def refused(password: str, *about: str) -> str:
    """The English sentence with which it is refused."""
    with pytest.raises(Invalid) as error:
        check_password(password, about=about)
    assert error.value.path == ("password",)
    assert error.value.message("ru") != error.value.message("en")
    assert password not in error.value.message("ru") + error.value.message("en")
    return error.value.message("en")


@pytest.mark.parametrize(
    "password",
    [
        GOOD,
        "correct horse battery staple",
        "tR7#kq0Zb!",
        "Верный ёж-пешеход",
        "ключ от сарая 🔑🔑🔑",
        ("ёлка-стол-река-дом-" * 2)[:36],
        ("a horse, a stable, " * 4)[:72],
        *sorted({account.password for account in demo.ACCOUNTS}),
    ],
)
def test_a_password_within_the_limits_may_be_chosen(password: str) -> None:
    check_password(password, about=("anna.petrova@example.org", "Анна Петрова"))


@pytest.mark.parametrize("password", ["", "a" * 9, "ж" * 9])
async def test_hash_refuses_a_short_password(hasher: PasswordHasher, password: str) -> None:
    with pytest.raises(Invalid) as error:
        await hasher.hash(password)

    assert error.value.path == ("password",)
    assert "10" in error.value.message("ru")
    assert "10" in error.value.message("en")


@pytest.mark.parametrize("password", ["a" * 73, "ж" * 37, "🔑" * 19])
async def test_hash_refuses_what_bcrypt_would_cut_off(hasher: PasswordHasher, password: str) -> None:
    with pytest.raises(Invalid) as error:
        await hasher.hash(password)

    assert error.value.path == ("password",)
    assert "36 русских букв" in error.value.message("ru")
    assert "36 Cyrillic" in error.value.message("en")


@pytest.mark.parametrize("sign", ["\x00", "\ud800"])
def test_signs_that_no_keyboard_types_are_refused(sign: str) -> None:
    assert "sign" in refused(GOOD + sign)


@pytest.mark.parametrize(
    "password",
    [
        "password123",
        "Password123",
        "PASSWORD123",
        "1q2w3e4r5t",
        "1qaz2wsx3edc",
        "liverpool1",
        "spartak1922",
        "parolparol",
        "fktrcfylhf1",  # александра1 on Latin keys
        "александра1",
        "Александра1",
        "пароль12345",
        "gfhjkm12345",
        "ПАРОЛЬПАРОЛЬ",
        "наташенька",
    ],
)
def test_the_commonest_are_refused_in_any_case_and_on_either_keyboard(password: str) -> None:
    assert "commonest" in refused(password)


@pytest.mark.parametrize(
    "password",
    [
        "aaaaaaaaaa",
        "ж" * 36,
        "1212121212",
        "абвабвабвабв",
        "0123456789",
        "9876543210",
        "12345678901234567890",
        "abcdefghij",
        "абвгдежзик",
        "qwertyuiop[]",
        "йцукенгшщзхъ",
        "ЙЦУКЕН12345",
        "qwertyйцукен",
        "qweasdzxc123",
        "🔑" * 10,
    ],
)
def test_repeats_and_runs_are_refused(password: str) -> None:
    assert "too simple" in refused(password)


@pytest.mark.parametrize(
    "password",
    [
        "anna.petrova@example.org",
        "Petrova-1985!",
        "Анна1985Петрова",
        "Fyyf1985Gtnhjdf",  # the same on Latin keys
        "ekoyka-2026!!",
        "Экойка2026!!",
        "'rjqrf2026!!",
        "Пароль-1703-Анна",
        "annaannaannaPetrova17",
    ],
)
def test_what_everybody_knows_of_the_account_is_no_password(password: str) -> None:
    assert "beside your name" in refused(password, "anna.petrova@example.org", "Петрова Анна Сергеевна")


def test_a_name_may_be_part_of_a_password_that_has_enough_of_its_own() -> None:
    check_password("Анна и велосипед 38", about=("anna@example.org", "Анна"))


def test_a_password_is_looked_up_in_files_and_not_in_memory() -> None:
    """Millions of passwords would take more than all the rest of the server."""
    tracemalloc.start()
    for number in range(300):
        check_password(f"{GOOD} {number:x} вороны")
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most_bytes < 8 << 20


async def test_registration_and_new_passwords_refuse_them_by_their_fields(
    client: Client, make: Factory
) -> None:
    hashed = await client.services.hasher.hash(GOOD)
    account = await make.account(name="Ольга Крылова", password_hash=hashed)
    boss = await make.actor(superadmin=True)
    choice = {"name": "Ольга Крылова", "email": "olga@example.org", "password": "Ольга-Крылова-1"}
    known, common = "Ольга-Крылова-1", "пароль12345"

    registered = [
        await client.mutate("register", "", {**choice, "password": item}) for item in (known, common)
    ]
    changed = [
        await client.mutate(
            "passwordChange",
            "",
            {"password": GOOD, "newPassword": item},
            Actor(account_id=account.id, auth_version=1),
        )
        for item in (known, common)
    ]
    leave = await client.mutate(
        "accountResetPassword",
        "... on PasswordResetCode { resetCode }",
        {"id": gid("Account", account)},
        boss,
    )
    reset = [
        await client.mutate("passwordReset", "", {"code": leave["resetCode"], "newPassword": item})
        for item in (known, common)
    ]

    assert [(item["code"], item["path"]) for item in registered] == [("INVALID_INPUT", ["password"])] * 2
    for item in (*changed, *reset):
        assert (item["code"], item["path"]) == ("INVALID_INPUT", ["newPassword"])
    done = await client.mutate("passwordReset", "", {"code": leave["resetCode"], "newPassword": GOOD})
    assert done["__typename"] == "Tokens"
