"""OAuth 2 for programs: tokens for a password or a refresh token, and their revocation (RFC 6749, 7009, 9700).

A browser's script has no business here: nothing is set in cookies, and no other origin may read an answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl

from authlib.oauth2.rfc6749.errors import (
    InvalidGrantError,
    InvalidRequestError,
    OAuth2Error,
    UnsupportedGrantTypeError,
)
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ekoyka.api.clients import origin_of
from ekoyka.api.context import Services
from ekoyka.api.endpoint import LARGEST_BODY_BYTES, TooLarge, whole
from ekoyka.api.presentation import may_succeed_later
from ekoyka.api.session_mutations import refresh, sign_in
from ekoyka.errors import NotFound, Refusal
from ekoyka.identity import sessions
from ekoyka.identity.credentials import NotAuthenticated
from ekoyka.rates import RateLimited

_HEADERS = {"cache-control": "no-store", "pragma": "no-cache"}  # RFC 6749, 5.1


async def token(request: Request) -> Response:
    """The resource owner's password and refresh token grants (RFC 6749, 4.3 and 6).

    ``/auth/refresh`` is the same for whoever sends nothing but a refresh token.
    """
    return await _answered(request, _grant)


async def revoke(request: Request) -> Response:
    """The session of the token is over (RFC 7009); of a token that is no good, it is already."""
    return await _answered(request, _revoke)


async def _answered(
    request: Request, work: Callable[[Request, Services, Mapping[str, str]], Awaitable[Response]]
) -> Response:
    services: Services = request.app.state.services
    try:
        async with asyncio.timeout(services.settings.operation_timeout_s):
            return await work(request, services, await _given(request))
    except ClientDisconnect:
        return Response(status_code=400)  # which nobody hears
    except TooLarge:
        return JSONResponse(
            {
                "error": "invalid_request",
                "error_description": f"A body holds at most {LARGEST_BODY_BYTES} bytes.",
            },
            413,
            {**_HEADERS, "connection": "close"},
        )
    except OAuth2Error as error:
        return JSONResponse(dict(error.get_body()), error.status_code, _HEADERS)
    except RateLimited as limited:
        return JSONResponse(
            {
                "error": "slow_down",
                "error_description": f"Too often: ask again in {limited.retry_after_s} s.",
            },
            429,
            {**_HEADERS, "retry-after": str(limited.retry_after_s)},
        )
    except Exception as error:
        if not may_succeed_later(error):
            raise
        return JSONResponse(
            {
                "error": "temporarily_unavailable",
                "error_description": "The database cannot be reached right now, or took too long.",
            },
            503,
            {**_HEADERS, "retry-after": "1"},
        )


async def _given(request: Request) -> Mapping[str, str]:
    """The request's parameters; none of them may come twice (RFC 6749, 3.2). Raises `InvalidRequestError`."""
    name, *parameters = (part.strip().lower() for part in request.headers.get("content-type", "").split(";"))
    charsets = [
        part.removeprefix("charset=").strip('"') for part in parameters if part.startswith("charset=")
    ]
    if name != "application/x-www-form-urlencoded" or any(item != "utf-8" for item in charsets):
        raise InvalidRequestError("Send the request as application/x-www-form-urlencoded in UTF-8.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise InvalidRequestError("Send the request without a content encoding.")
    try:
        text = (await whole(request.receive)).decode("ascii")
        given = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=10)
    except ValueError:
        raise InvalidRequestError("Send at most ten parameters, percent-encoded in UTF-8.") from None
    if len(dict(given)) != len(given):
        raise InvalidRequestError("A parameter comes twice.")
    return dict(given)


async def _grant(request: Request, services: Services, given: Mapping[str, str]) -> Response:
    origin = origin_of(request)
    wanted = given.get("grant_type") or ("refresh_token" if request.url.path == "/auth/refresh" else None)
    try:
        match wanted:
            case "password":
                if "username" not in given or "password" not in given:
                    raise InvalidRequestError("The password grant needs `username` and `password`.")
                signed_in = await sign_in(services, given["username"], given["password"], origin)
            case "refresh_token":
                if "refresh_token" not in given:
                    raise InvalidRequestError("The refresh grant needs `refresh_token`.")
                signed_in = await refresh(services, given["refresh_token"], origin)
            case None:
                raise InvalidRequestError("`grant_type` is missing.")
            case _:
                raise UnsupportedGrantTypeError("The grants are `password` and `refresh_token`.")
    except Refusal as refusal:
        # RFC 6749, 5.2 leaves a description nothing but ASCII.
        raise InvalidGrantError(refusal.message("en")) from None
    return JSONResponse(
        {
            "access_token": services.tokens.issue(signed_in.actor).text,
            "token_type": "Bearer",
            "expires_in": services.settings.access_token_ttl_s,
            "refresh_token": signed_in.refresh_token,
        },
        headers=_HEADERS,
    )


async def _revoke(_: Request, services: Services, given: Mapping[str, str]) -> Response:
    if not given.get("token"):
        raise InvalidRequestError("`token` is missing.")
    try:
        actor = services.tokens.read(given["token"]).actor
    except NotAuthenticated:
        async with services.database.transaction() as session:
            await sessions.end_session(session, given["token"])
    else:
        try:
            async with services.database.transaction() as session:
                if actor.session_id is not None:
                    await sessions.end_session_of(session, actor=actor, session_id=actor.session_id)
        except (NotAuthenticated, NotFound):
            pass  # it is over already
    return Response(status_code=200, headers=_HEADERS)
