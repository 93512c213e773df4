"""Global ids: opaque to clients, ``base64("Type:key")`` inside."""

import base64
import binascii

_LARGEST_KEY = 2**63 - 1


class BadInput(Exception):
    """A value that the schema's types let through but that cannot be meant; the text says what to do."""


def encode(type_name: str, key: int) -> str:
    """The global id of a row."""
    return base64.b64encode(f"{type_name}:{key}".encode()).decode()


def encode_sql(type_name: str, key: str) -> str:
    """As `encode`, by PostgreSQL."""
    return f"encode(('{type_name}:' || {key})::bytea, 'base64')"


def decode(value: str) -> tuple[str, int]:
    """The type's name and the key in a global id. Raises `BadInput`."""
    try:
        type_name, _, key = base64.b64decode(value, validate=True).decode("ascii").partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        type_name, key = "", ""
    if not (type_name.isidentifier() and key.isascii() and key.isdigit() and len(key) < 20):
        raise BadInput("This is not an id that this server gave out.")
    number = int(key)
    if encode(type_name, number) != value or number > _LARGEST_KEY:
        raise BadInput("This is not an id that this server gave out.")
    return type_name, number


def decode_as(type_name: str, value: str) -> int:
    """The key in the global id of a row of this type. Raises `BadInput` for another type's."""
    found, key = decode(value)
    if found != type_name:
        raise BadInput(f"An id of {type_name} is needed here; this one is of {found}.")
    return key
