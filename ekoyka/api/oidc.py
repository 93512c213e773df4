"""Sign-in with an OpenID Connect provider, for browsers: there, back, and the session in cookies.

Both halves are GETs, as links and redirections are. Going there changes nothing. Coming back opens a session,
and cannot be made to happen by a link: it needs the cookie of the browser that went, which holds the ``state``
that the provider returns, the ``nonce`` that its ID token must bear and the verifier without which its code is
worth nothing; the code is good once, and the cookie is taken away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ekoyka.api.clients import address_of, origin_of
from ekoyka.api.context import Services
from ekoyka.api.pages import page, said
from ekoyka.database import DatabaseUnavailable
from ekoyka.errors import Refusal
from ekoyka.identity import external, limits, sessions
from ekoyka.identity.external import NotVouchedFor, ProviderUnavailable
from ekoyka.rates import RateLimited, attempt

if TYPE_CHECKING:
    from ekoyka.identity.provider import Provider

log = structlog.get_logger(__name__)


async def login(request: Request) -> Response:
    """The browser is on its way to the provider."""
    services: Services = request.app.state.services
    if services.provider is None:
        return _no_provider(request)
    try:
        address, kept = await services.provider.begin()
    except ProviderUnavailable as error:
        return _unavailable(request, error)
    answer = RedirectResponse(address, 303)
    # Lax: the provider's page leads back, and a stricter cookie would not come along.
    answer.headers.append("set-cookie", _kept(services, kept, services.provider.begun_ttl_s))
    return answer


async def callback(request: Request) -> Response:
    """The browser is back, and its session is open; or the refusal is named."""
    services: Services = request.app.state.services
    if services.provider is None:
        return _no_provider(request)
    try:
        answer = await _signed_in(request, services, services.provider)
    except ProviderUnavailable as error:
        answer = _unavailable(request, error)
    except NotVouchedFor as error:
        log.warning("oidc_refused", reason=str(error))
        answer = said(
            request,
            400,
            "OIDC_REFUSED",
            ru="Вход не удался: начните его сначала.",
            en="The sign-in did not succeed: begin it again.",
        )
    except Refusal as refusal:
        answer = said(request, 403, refusal.code, ru=refusal.message("ru"), en=refusal.message("en"))
    except RateLimited as limited:
        answer = said(
            request,
            429,
            "RATE_LIMITED",
            ru="Слишком часто: повторите позже.",
            en="Too often: try again later.",
            headers={"retry-after": str(limited.retry_after_s)},
        )
    except DatabaseUnavailable:
        answer = said(
            request,
            503,
            "SERVICE_UNAVAILABLE",
            ru="Сейчас не получилось: повторите через несколько секунд.",
            en="Not possible right now: try again in a few seconds.",
            headers={"retry-after": "3"},
        )
    answer.headers.append("set-cookie", _kept(services, "", 0))
    return answer


async def _signed_in(request: Request, services: Services, provider: Provider) -> Response:
    settings = services.settings
    await attempt(services.database, limits.sign_in_from(address_of(request)))
    answer: Mapping[str, str] = request.query_params
    identity = await provider.end(answer, request.cookies.get(services.browsers.oidc, ""))
    async with services.database.transaction() as session:
        account_id = await external.account_of(
            session, identity, links=settings.oidc_links_accounts, creates=settings.oidc_creates_accounts
        )
        signed_in = await sessions.open_session(
            session,
            account_id=account_id,
            password_hash=None,
            ttl_s=settings.refresh_token_ttl_s,
            origin=origin_of(request),
            browser=True,
        )
    token = services.tokens.issue(signed_in.actor, csrf_hash=signed_in.csrf_hash)
    welcome = page("welcome.html.j2")
    for cookie in services.browsers.signed_in(signed_in, token):
        welcome.headers.append("set-cookie", cookie)
    return welcome


def _kept(services: Services, value: str, lasts_s: int) -> str:
    return services.browsers.cookie(services.browsers.oidc, value, lasts_s, same_site="Lax")


def _no_provider(request: Request) -> Response:
    return said(
        request,
        404,
        "NOT_FOUND",
        ru="Вход через поставщика удостоверений здесь не настроен.",
        en="No identity provider is configured here.",
    )


def _unavailable(request: Request, error: ProviderUnavailable) -> Response:
    log.warning("oidc_unavailable", reason=str(error))
    return said(
        request,
        503,
        "PROVIDER_UNAVAILABLE",
        ru="Поставщик удостоверений не отвечает: повторите позже или войдите с паролем.",
        en="The identity provider does not answer: try again later, or sign in with a password.",
        headers={"retry-after": "10"},
    )
