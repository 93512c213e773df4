"""Who is at the other end of a connection, as far as it can be known."""

from starlette.requests import HTTPConnection

from ekoyka.identity.sessions import Origin


def address_of(connection: HTTPConnection) -> str | None:
    """The client's network address."""
    return connection.client.host if connection.client else None


def origin_of(connection: HTTPConnection) -> Origin:
    """What a session keeps of where it was opened or used."""
    return Origin(address_of(connection), connection.headers.get("user-agent"))
