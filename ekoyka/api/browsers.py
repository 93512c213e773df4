"""Sessions that browsers carry: in cookies that no script reads and no other site's page sends along.

Whatever the cookies carry needs the session's CSRF token beside it, in the header ``X-CSRF-Token``: pages of
this server read it from a cookie of its own. It is compared with what the access token says of it, and never
with that cookie, so planting cookies from a neighbouring domain is of no use.

Where the server is reached over TLS, the cookies' names begin with ``__Host-``: browsers take them from this
very host over TLS alone. All of them go to every path: a narrower one for the refresh token would cost that,
and it is needed where all operations are asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from ekoyka.api.clients import Fields
from ekoyka.identity.credentials import AccessToken, NotAuthenticated, ReadToken, Tokens
from ekoyka.identity.sessions import CsrfTokenWrong, SignedIn, is_csrf_token
from ekoyka.settings import Settings

CSRF_HEADER = "X-CSRF-Token"


class CrossSite(Exception):
    """A page of another origin asks with this server's cookies, or for some."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What a browser carries: its access token while that is good, its refresh token, and the CSRF token sent."""

    token: ReadToken | None
    refresh_token: str | None
    csrf_token: str


class Browsers:
    """The cookies of this deployment: read, checked, set and taken away."""

    def __init__(self, settings: Settings, tokens: Tokens) -> None:
        self._tokens = tokens
        prefix = "__Host-" if settings.base_url.startswith("https://") else ""
        self.access, self.refresh, self.csrf, self.oidc = (
            f"{prefix}ekoyka_{name}" for name in ("access", "refresh", "csrf", "oidc")
        )
        self._own = origin_of_url(settings.base_url) if settings.public_url else None

    def is_own(self, headers: Fields) -> bool:
        """Whether a page of this server asks, or a program, which says nothing of pages."""
        origin, site = headers[b"origin"], headers[b"sec-fetch-site"]
        return (site in ("", "same-origin", "none")) and (
            not origin or self._is_own(origin, headers[b"host"])
        )

    def _is_own(self, origin: str, host: str) -> bool:
        # Without a public address the server goes by whatever names reach it, and so do its cookies.
        return origin == self._own if self._own else origin.partition("://")[2] == host.lower() != ""

    def carried(self, headers: Fields) -> Carried | None:
        """What a request carries in cookies; None where it carries nothing of ours.

        Raises `CrossSite`, and `CsrfTokenWrong` where an access token is good and its CSRF token is not there:
        reading needs it too, as it is written into the access log. A refresh token is checked where it is used.
        """
        cookies = self._cookies(headers)
        if not cookies:
            return None
        if not self.is_own(headers):
            raise CrossSite
        csrf_token = headers[CSRF_HEADER.lower().encode()]
        token = self._good(cookies)
        if token is not None:
            _require(csrf_token, token)
        return Carried(token, cookies.get(self.refresh), csrf_token)

    def on_socket(self, connection: HTTPConnection, payload: Mapping[str, Any]) -> Carried | None:
        """As `carried`, for a socket's first message, which has the CSRF token beside it.

        Browsers let any page open a socket anywhere and send the cookies along, but never without the page's
        origin. Raises `NotAuthenticated` for a session that must be renewed, and for any page but our own.
        """
        headers = Fields(connection.scope["headers"])
        cookies = self._cookies(headers)
        if not cookies:
            return None
        given = payload.get(CSRF_HEADER) or payload.get(CSRF_HEADER.lower()) or ""
        token = self._good(cookies)
        if token is None:
            raise NotAuthenticated("cookie")
        if not headers[b"origin"] or not self.is_own(headers):
            raise NotAuthenticated("cross-site")
        try:
            _require(str(given), token)
        except CsrfTokenWrong:
            raise NotAuthenticated("csrf") from None
        return Carried(token, cookies.get(self.refresh), str(given))

    def visitor(self, connection: HTTPConnection) -> ReadToken | None:
        """Whose browser asks for a page; asking changes nothing, so no CSRF token is needed."""
        return self._good(self._cookies(Fields(connection.scope["headers"])))

    def signed_in(self, signed_in: SignedIn, token: AccessToken) -> list[str]:
        """The `Set-Cookie` of a session that is open from now on, or was renewed."""
        lasts = signed_in.ends_at - datetime.now(UTC)
        made = [
            self.cookie(self.access, token.text, (token.expires_at - datetime.now(UTC)).total_seconds()),
            self.cookie(self.refresh, signed_in.refresh_token, lasts.total_seconds()),
        ]
        if signed_in.csrf_token is not None:
            made.append(self.cookie(self.csrf, signed_in.csrf_token, lasts.total_seconds(), for_scripts=True))
        return made

    def signed_out(self) -> list[str]:
        """The `Set-Cookie` that take everything away."""
        return [self.cookie(name, "", 0) for name in (self.access, self.refresh, self.csrf)]

    def cookie(
        self, name: str, value: str, lasts_s: float, *, for_scripts: bool = False, same_site: str = "Strict"
    ) -> str:
        """The `Set-Cookie` of one cookie; an empty one that lasts no time takes it away."""
        hidden = "" if for_scripts else " HttpOnly;"
        return f"{name}={value}; Max-Age={max(0, int(lasts_s))}; Path=/; Secure;{hidden} SameSite={same_site}"

    def _cookies(self, headers: Fields) -> dict[str, str]:
        """Our access and refresh token, as far as they are there."""
        found: dict[str, str] = {}
        for part in headers[b"cookie"].split(";"):
            name, _, value = part.strip().partition("=")
            if name in (self.access, self.refresh):
                # Two of one name: somebody has put one beside ours, and which is which cannot be told.
                found[name] = "" if name in found else value
        return found

    def _good(self, cookies: Mapping[str, str]) -> ReadToken | None:
        try:
            token = self._tokens.read(cookies.get(self.access, ""))
        except NotAuthenticated:
            return None
        # A program's token has no place in a cookie.
        return token if token.csrf_hash is not None else None


def _require(csrf_token: str, token: ReadToken) -> None:
    if not is_csrf_token(csrf_token, token.csrf_hash or b""):
        raise CsrfTokenWrong


def origin_of_url(url: str) -> str:
    """The origin of an address, as browsers write it (RFC 6454, 6.2)."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = "" if parts.port in (None, default) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"
