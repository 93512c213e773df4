"""What clients' values become on their way to the driver."""

from typing import Any

from ekoyka.graph.ids import BadInput, decode_as
from ekoyka.graph.model import Arg


def ready(arg: Arg, value: Any) -> Any:
    """An argument's coerced value in the form that the driver takes. Raises `BadInput`."""
    if isinstance(value, list):
        return [ready(arg, item) for item in value]
    if arg.decode is not None:
        return arg.decode(value)
    if arg.key_of is not None and value is not None:
        return decode_as(arg.key_of, value)
    if isinstance(value, str):
        return writable(value)
    return value


def writable(text: str) -> str:
    """The text, if PostgreSQL can take it. Raises `BadInput`."""
    if "\x00" in text:
        raise BadInput("Text must not contain the character NUL.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput("Text must not contain half of a surrogate pair.") from error
    return text


def at_path(value: Any, path: tuple[str | int, ...]) -> Any:
    """What lies at this path of nested dicts and lists."""
    for step in path:
        value = value.get(step) if isinstance(value, dict) else value[step]
    return value
