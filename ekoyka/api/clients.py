"""Who is at the other end of a connection, as far as it can be known."""

from collections.abc import Iterable

from starlette.requests import HTTPConnection

from ekoyka.identity.sessions import Origin


class Fields:
    """A request's header fields by name, as text: empty where one is absent, the last where it is repeated."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._raw = dict(raw)

    def __getitem__(self, name: bytes) -> str:
        return self._raw.get(name, b"").decode("latin-1")


def address_of(connection: HTTPConnection) -> str | None:
    """The client's network address."""
    return connection.client.host if connection.client else None


def origin_of(connection: HTTPConnection) -> Origin:
    """What a session keeps of where it was opened or used."""
    return Origin(address_of(connection), connection.headers.get("user-agent"))
