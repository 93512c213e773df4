"""Who is at the other end of a connection, as far as it can be known.

Behind a proxy that is the proxy, unless the settings name it: then what it says of its own client is believed,
and of what was there before, what the proxies before it say, as long as they are named too. Whatever anybody
else writes into these fields is not looked at.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.requests import HTTPConnection
from starlette.types import Scope

from ekoyka.identity.sessions import Origin
from ekoyka.settings import Network, ProxyHeader, Settings

# Longer chains of proxies are nobody's, and longer texts are no address: what was read is kept.
_MOST_HOPS, _LONGEST = 20, 60
# An address with or without a port; of IPv6 in brackets where there is one (RFC 7239, 6).
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::\d{1,5})?|([0-9A-Fa-f:.]+)")
_FOR = re.compile(r"(?:^|;)\s*for\s*=\s*(\"[^\"]*\"|[^;\"\s]*)\s*(?=;|$)", re.IGNORECASE)


@lru_cache(10_000)
def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The network address that is meant, if one is."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket that takes both kinds shows IPv4 in IPv6's clothes.
    return getattr(address, "ipv4_mapped", None) or address


def _node(text: str) -> IPv4Address | IPv6Address | None:
    found = _NODE.fullmatch(text) if len(text) <= _LONGEST else None
    return _address(next(part for part in found.groups() if part is not None)) if found else None


def _forwarded(element: str) -> str:
    """Whom an element of `Forwarded` was received from (RFC 7239, 5.2); empty where it does not say so once."""
    found = _FOR.findall(element)
    return found[0].strip('"') if len(found) == 1 else ""


class Proxies:
    """The proxies that are believed."""

    def __init__(self, settings: Settings) -> None:
        self._networks = settings.trusted_proxies
        self._field = settings.proxy_header.value.encode()
        self._whom = _forwarded if settings.proxy_header is ProxyHeader.FORWARDED else str

    def __bool__(self) -> bool:
        return bool(self._networks)

    def client(self, scope: Scope) -> tuple[str, int] | None:
        """The connection's client: the last whom a proxy that is believed has received it from."""
        peer: tuple[str, int] | None = scope["client"]
        known = _address(peer[0]) if peer else None
        if known is None or not _is_in(known, self._networks):
            return peer
        said = b",".join(value for name, value in scope["headers"] if name == self._field).decode("latin-1")
        # Each proxy writes behind what it was sent; so the last element is the nearest's.
        for element in reversed(said.rsplit(",", _MOST_HOPS)[-_MOST_HOPS:] if said else []):
            before = _node(self._whom(element.strip()).strip())
            if before is None:
                break
            known = before
            if not _is_in(known, self._networks):
                break
        return str(known), 0


def _is_in(address: IPv4Address | IPv6Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


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


def is_operator(connection: HTTPConnection, settings: Settings) -> bool:
    """Whether the client may see how the server is: by its token where one is set, else by where it comes from."""
    if settings.metrics_token is not None:
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        expected = settings.metrics_token.get_secret_value()
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), expected.encode())
    known = _address(address_of(connection) or "")
    return known is not None and _is_in(known, settings.metrics_networks)
