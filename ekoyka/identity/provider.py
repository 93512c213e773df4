"""An OpenID Connect provider: whom it has signed in. Knows no database.

The authorization code flow with PKCE (OpenID Connect Core 1.0, 3.1; RFC 7636; RFC 9700, 2.1.1). What must be
remembered between its two halves is signed and given to the browser that began, so that nobody else can end it.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oidc.core import CodeIDToken
from authlib.oidc.discovery import get_well_known_url
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet, OctKey
from joserfc.jws import JWSRegistry

from ekoyka.identity.external import Identity, NotVouchedFor, ProviderUnavailable
from ekoyka.settings import Settings

# The signature is the provider's alone: never `none`, nor a secret that this server knows as well.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
_METADATA_TTL_S = 3600
_LEEWAY_S = 60
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]+")
_Result = TypeVar("_Result")


class Provider:
    """The provider of this deployment; somebody has ``begun_ttl_s`` to sign in there."""

    begun_ttl_s = 600

    def __init__(self, settings: Settings, keys: Sequence[str]) -> None:
        assert settings.oidc_issuer is not None
        self.issuer = settings.oidc_issuer
        self._settings = settings
        self._redirect_uri = f"{settings.base_url}/auth/oidc/callback"
        self._keys = [OctKey.import_key(hmac.digest(key.encode(), b"oidc-state", "sha256")) for key in keys]
        self._metadata: dict[str, Any] = {}
        self._metadata_until = 0.0
        self._jwks: KeySet | None = None

    async def begin(self) -> tuple[str, str]:
        """Where to send the browser, and what it must keep until it comes back. Raises `ProviderUnavailable`."""
        metadata = await self._in_time(self._discovered)
        kept = {name: secrets.token_urlsafe(32) for name in ("state", "nonce", "verifier")}
        async with self._client() as client:
            address, _ = client.create_authorization_url(
                metadata["authorization_endpoint"],
                state=kept["state"],
                nonce=kept["nonce"],
                code_verifier=kept["verifier"],
            )
        return address, jwt.encode(
            {"alg": "HS256"}, {**kept, "exp": int(time.time()) + self.begun_ttl_s}, self._keys[0]
        )

    async def end(self, answer: Mapping[str, str], kept: str) -> Identity:
        """Whom the provider has signed in, by its answer to the browser that began.

        Raises `NotVouchedFor`, `ProviderUnavailable`.
        """
        begun = self._begun(kept)
        if begun is None or not hmac.compare_digest(
            answer.get("state", "").encode(), begun["state"].encode()
        ):
            raise NotVouchedFor("state")
        if "error" in answer or not answer.get("code"):
            raise NotVouchedFor("refused")
        return await self._in_time(lambda: self._end(answer, begun))

    def _begun(self, kept: str) -> dict[str, str] | None:
        for key in self._keys:
            try:
                claims = jwt.decode(kept, key, algorithms=["HS256"]).claims
            except (JoseError, ValueError):
                continue
            return claims if claims["exp"] > time.time() else None
        return None

    async def _end(self, answer: Mapping[str, str], begun: Mapping[str, str]) -> Identity:
        metadata = await self._discovered()
        # RFC 9207: an answer of another provider is not taken for this one's.
        named = metadata.get("authorization_response_iss_parameter_supported") is True
        if answer.get("iss", None if named else self.issuer) != self.issuer:
            raise NotVouchedFor("issuer")
        async with self._client() as client:
            try:
                token = await client.fetch_token(
                    metadata["token_endpoint"],
                    grant_type="authorization_code",
                    code=answer["code"],
                    code_verifier=begun["verifier"],
                )
            except OAuthError:
                raise NotVouchedFor("code") from None
            claims = await self._claims(token, begun["nonce"])
            if "email" not in claims and metadata.get("userinfo_endpoint"):
                claims = {**claims, **await self._userinfo(client, metadata["userinfo_endpoint"], claims)}
        return self._identity(claims)

    async def _claims(self, token: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        """What a good ID token says (OpenID Connect Core 1.0, 3.1.3.7). Raises `NotVouchedFor`."""
        registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        text = token.get("id_token")
        try:
            if not isinstance(text, str):
                raise NotVouchedFor("id_token")
            try:
                read = jwt.decode(text, await self._key_set(), registry=registry)
            except InvalidKeyIdError:
                # The provider has a new key.
                read = jwt.decode(text, await self._key_set(anew=True), registry=registry)
            claims = CodeIDToken(
                read.claims,
                read.header,
                {
                    "iss": {"essential": True, "value": self.issuer},
                    "aud": {"essential": True, "value": self._settings.oidc_client_id},
                    "nonce": {"essential": True, "value": nonce},
                },
                {
                    "nonce": nonce,
                    "client_id": self._settings.oidc_client_id,
                    "access_token": token.get("access_token"),
                },
            )
            claims.validate(leeway=_LEEWAY_S)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise NotVouchedFor(type(error).__name__) from None
        return dict(claims)

    async def _userinfo(
        self, client: AsyncOAuth2Client, address: str, claims: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the provider says beside its ID token, of the same person (5.3.2)."""
        answer = await client.get(address)
        answer.raise_for_status()
        more = answer.json()
        if not isinstance(more, dict) or more.get("sub") != claims.get("sub"):
            raise NotVouchedFor("userinfo")
        return {name: more[name] for name in ("email", "email_verified", "name") if name in more}

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject, email, name = claims.get("sub"), claims.get("email"), claims.get("name")
        if not isinstance(subject, str) or not subject.isascii() or not 1 <= len(subject) <= 255:
            raise NotVouchedFor("subject")
        verified = claims.get("email_verified") is True and isinstance(email, str)
        return Identity(
            self.issuer,
            _UNWRITABLE.sub(" ", subject),
            _UNWRITABLE.sub(" ", str(email)) if verified else None,
            _UNWRITABLE.sub(" ", name) if isinstance(name, str) else None,
        )

    async def _discovered(self) -> dict[str, Any]:
        """What the provider says of itself (OpenID Connect Discovery 1.0, 4); kept for an hour."""
        if time.monotonic() > self._metadata_until:
            found = await self._asked(get_well_known_url(self.issuer, external=True))
            if found.get("issuer") != self.issuer:
                raise ProviderUnavailable("issuer")
            scheme = self.issuer.partition("://")[0]
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                if not str(found.get(name)).startswith(("https://", f"{scheme}://")):
                    raise ProviderUnavailable(name)
            self._metadata, self._metadata_until = found, time.monotonic() + _METADATA_TTL_S
            self._jwks = None
        return self._metadata

    async def _key_set(self, *, anew: bool = False) -> KeySet:
        if self._jwks is None or anew:
            self._jwks = KeySet.import_key_set(await self._asked(self._metadata["jwks_uri"]))  # type: ignore[arg-type]  # checked by it
        return self._jwks

    async def _asked(self, address: str) -> dict[str, Any]:
        async with self._client() as client:
            answer = await client.request("GET", address, withhold_token=True)
        answer.raise_for_status()
        found = answer.json()
        if not isinstance(found, dict):
            raise ProviderUnavailable("no object")
        return found

    async def _in_time(self, work: Callable[[], Awaitable[_Result]]) -> _Result:
        try:
            async with asyncio.timeout(self._settings.oidc_timeout_s):
                return await work()
        except (httpx2.HTTPError, httpx2.InvalidURL, JoseError, OSError, ValueError, KeyError) as error:
            raise ProviderUnavailable(type(error).__name__) from None

    def _client(self) -> AsyncOAuth2Client:
        """A client for one sign-in: it remembers that sign-in's tokens."""
        secret = self._settings.oidc_client_secret
        return AsyncOAuth2Client(
            client_id=self._settings.oidc_client_id,
            client_secret=secret.get_secret_value() if secret else None,
            scope=self._settings.oidc_scopes,
            redirect_uri=self._redirect_uri,
            code_challenge_method="S256",
            timeout=self._settings.oidc_timeout_s,
            verify=self._tls,
        )

    @cached_property
    def _tls(self) -> Any:
        # Costs much to make, and is the same for all.
        return httpx2.create_ssl_context()
