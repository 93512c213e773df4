"""The application: routes, and what lives as long as the process.

Starts whether or not its database is there: until it is, fit and migrated, requests are answered with a
named error and `/readyz` says what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from strawberry import Schema

from ekoyka import explorer, feed, links, migrate, rates
from ekoyka.api import files, oidc
from ekoyka.api.accounts import Accounts
from ekoyka.api.browsers import Browsers, origin_of_url
from ekoyka.api.clients import Proxies, is_operator
from ekoyka.api.context import Services
from ekoyka.api.endpoint import LARGEST_BODY_BYTES, Endpoint, says_too_much, too_large
from ekoyka.api.headers import security_headers
from ekoyka.api.oauth import revoke, token
from ekoyka.api.pages import page, said
from ekoyka.api.permissions import STAFF
from ekoyka.api.presentation import may_succeed_later
from ekoyka.api.schema import build_schema
from ekoyka.api.sockets import Sockets
from ekoyka.api.watching import Watching
from ekoyka.certificates.render import Renderer
from ekoyka.database import (
    NETWORK,
    SERVER_ROLE,
    Database,
    DatabaseUnavailable,
    DatabaseUnfit,
    Statement,
)
from ekoyka.documents import Documents
from ekoyka.feed import Feed
from ekoyka.graph.plan import Planner
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import PasswordHasher, Tokens, load_keys
from ekoyka.identity.queries import guard
from ekoyka.identity.readings import Readings
from ekoyka.identity.seals import SEAL_EVERY_S, Sealer
from ekoyka.inpatient.queries import bed_status
from ekoyka.inpatient.reservations import lapse_reservations
from ekoyka.observability import (
    RESERVATIONS_LAPSED,
    STATEMENTS,
    RequestLog,
    configure_logs,
    metrics_text,
)
from ekoyka.settings import Mode, Settings
from ekoyka.tally import Tallies

if TYPE_CHECKING:
    from ekoyka.identity.provider import Provider

log = structlog.get_logger(__name__)

LONGEST_ROUND_S = 60.0
STATIC = Path(__file__).parent / "static"


class Application(Starlette):
    """The routes; operations go straight to their endpoint, past what the other routes need on their way."""

    operations: ASGIApp
    refusal: ASGIApp
    proxies: Proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.proxies and scope["type"] != "lifespan":
            scope["client"] = self.proxies.client(scope)
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == "/graphql":
            scope["app"] = self
            await self.operations(scope, receive, send)
        elif scope["type"] == "http" and says_too_much(scope):
            await self.refusal(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


@cache
def _schema() -> Schema:
    return build_schema()


def create_app(settings: Settings) -> Starlette:
    """The server of these settings. Raises `SettingsIncomplete` where a secret is missing."""
    configure_logs(settings)
    assert settings.database_url is not None, "the command line starts the embedded PostgreSQL first"
    keys = load_keys(settings)
    schema = _schema()
    address = settings.database_url.get_secret_value()
    database = Database(address, settings, role=SERVER_ROLE, on_statement=STATEMENTS.inc)
    listener, readings = Feed(database), Readings(database)
    sealer = Sealer(database, NETWORK)
    tokens = Tokens(keys, issuer=settings.token_issuer, ttl_s=settings.access_token_ttl_s)
    services = Services(
        settings=settings,
        database=database,
        planner=Planner(schema._schema, introspectors=None if settings.mode is Mode.DEMO else STAFF),
        # Less than an operation's own patience, so that it is said what was waited for.
        hasher=PasswordHasher(settings.password_hash_rounds, patience_s=0.9 * settings.operation_timeout_s),
        tokens=tokens,
        download_keys=tuple(links.derive(key) for key in keys),
        renderer=Renderer(timeout_s=settings.render_timeout_s),
        feed=listener,
        watching=Watching(database, listener, readings, buffer_bytes=settings.feed_buffer_bytes),
        accounts=Accounts(database, listener),
        readings=readings,
        browsers=Browsers(settings, tokens),
        provider=_provider(settings, keys),
        sockets=Tallies(database),
        documents=Documents(database),
        purses=rates.Purses(database),
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # What is loaded now stays: the garbage collector need not look through it again and again.
        gc.collect()
        gc.freeze()
        prepared = app.state.prepared
        async with database, services.feed, services.sockets:
            work = [
                asyncio.create_task(_prepare(app, database), name="prepare"),
                asyncio.create_task(
                    _every(settings.lapse_interval_s, lambda: _lapse(database), once=prepared), name="lapse"
                ),
                asyncio.create_task(
                    _every(
                        3600, lambda: feed.prune(database, keep_s=settings.feed_retention_s), once=prepared
                    ),
                    name="prune",
                ),
                asyncio.create_task(_every(600, lambda: rates.sweep(database), once=prepared), name="sweep"),
                asyncio.create_task(
                    _every(SEAL_EVERY_S, lambda: sealer.turn(time.monotonic()), once=prepared), name="seal"
                ),
            ]
            if settings.worker_inside:
                work.append(asyncio.create_task(_work(app, database, settings), name="worker"))
            try:
                yield
            finally:
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)
                await services.renderer.close()
                services.hasher.close()

    headers = security_headers(settings)
    sockets = Sockets(
        schema,
        operations_per_socket=settings.subscriptions_per_socket,
        origin=origin_of_url(settings.base_url),
    )
    endpoint = Route("/graphql", Endpoint(schema), methods=["POST"])
    app = Application(
        lifespan=lifespan,
        # Starlette's own place for the limit is outside of all others, where its refusal would go around the log.
        # It stands behind the endpoints' own bound, for a route that forgets it.
        middleware=[
            Middleware(RequestLog, headers=headers),
            Middleware(RequestBodyLimitMiddleware, max_body_size=4 * LARGEST_BODY_BYTES),
        ],
        exception_handlers={HTTPException: unanswered},
        routes=[
            Route("/", lambda request: RedirectResponse("/graphql"), methods=["GET"]),
            endpoint,
            Route("/graphql", explore, methods=["GET"]),
            WebSocketRoute("/graphql", sockets),
            Route("/auth/token", token, methods=["POST"]),
            Route("/auth/refresh", token, methods=["POST"]),
            Route("/auth/revoke", revoke, methods=["POST"]),
            Route("/auth/oidc/login", oidc.login, methods=["GET"]),
            Route("/auth/oidc/callback", oidc.callback, methods=["GET"]),
            Route("/certificates/{name}.pdf", files.certificate, methods=["GET"]),
            Route("/calendars/{name}.ics", files.calendar, methods=["GET"]),
            Route("/verify/{code}", files.verifier(schema), methods=["GET"]),
            Route("/healthz", healthz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Mount("/static", _Kept(directory=STATIC, check_dir=False)),
        ],
    )
    app.proxies = Proxies(settings)
    app.refusal = RequestLog(too_large(), headers)
    app.operations = RequestLog(endpoint.app, headers, endpoint)
    app.state.schema = schema
    app.state.services = services
    app.state.prepared = asyncio.Event()
    app.state.unfit = None
    return app


def _provider(settings: Settings, keys: list[str]) -> Provider | None:
    if settings.oidc_issuer is None:
        return None
    # What speaks to it is loaded where there is one.
    from ekoyka.identity.provider import Provider

    return Provider(settings, keys)


async def _prepare(app: Starlette, database: Database) -> None:
    """The database is fit and migrated; tried until it is."""
    pause = 0.2
    while True:
        try:
            async with Database(database.url, database.settings, pooled=False) as owned:
                await owned.check_fit()
                await migrate.upgrade(owned)
        except Exception as error:  # whatever it was: it is tried until it is so
            reason = str(error) if isinstance(error, DatabaseUnfit) else "the database cannot be reached"
            if not isinstance(error, DatabaseUnavailable | DatabaseUnfit | DBAPIError | OSError):
                reason = f"the database could not be prepared ({type(error).__name__})"
            if app.state.unfit != reason:
                log.warning("database_not_ready", reason=reason)
            app.state.unfit = reason
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1)
        else:
            app.state.unfit = None
            app.state.prepared.set()
            log.info("database_ready", migration=migrate.head())
            return


async def _work(app: Starlette, database: Database, settings: Settings) -> None:
    """The worker's work is done in this process, once the database is ready."""
    # Its libraries take 10 MiB, which a server beside workers of their own does without.
    from ekoyka.worker import Worker

    await app.state.prepared.wait()
    await Worker(database, settings).run()


async def _every(seconds: float, work: Callable[[], Awaitable[None]], *, once: asyncio.Event) -> None:
    """The work is done again and again, once this has happened; a failure is logged and tried again."""
    await once.wait()
    while True:
        await asyncio.sleep(seconds)
        try:
            async with asyncio.timeout(LONGEST_ROUND_S):
                await work()
        except Exception as error:  # a periodic job outlives whatever goes wrong in one round
            log.warning("periodic_work_failed", kind=type(error).__name__)


async def _lapse(database: Database) -> None:
    while True:
        async with database.transaction(ward=NETWORK) as session:
            lapsed = await lapse_reservations(session)
        if lapsed:
            RESERVATIONS_LAPSED.inc(lapsed)
        else:
            return


async def explore(request: Request) -> Response:
    """The explorer for a browser, in production a member of staff's; programs are told how to ask."""
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse(
            {
                "errors": [
                    {
                        "message": "Send operations by POST as application/json.",
                        "extensions": {"code": "METHOD_NOT_ALLOWED"},
                    }
                ]
            },
            405,
            {"allow": "POST"},
        )
    services: Services = request.app.state.services
    signed_in = services.settings.mode is not Mode.DEMO
    if signed_in:
        try:
            actor = await _visitor(request, services)
        except DatabaseUnavailable:
            return said(
                request,
                503,
                "SERVICE_UNAVAILABLE",
                ru="Сейчас не получилось: повторите через несколько секунд.",
                en="Not possible right now: try again in a few seconds.",
                headers={"retry-after": "3"},
            )
        if actor is None or actor.roles.isdisjoint(STAFF):
            return page(
                "sign_in.html.j2",
                200 if actor is None else 403,
                scripted=True,
                stranger=actor is not None,
                csrf_cookie=services.browsers.csrf,
                provider=urlsplit(services.settings.oidc_issuer or "").hostname,
            )
    nonce = secrets.token_urlsafe(16)
    return HTMLResponse(
        explorer.page(nonce=nonce, csrf_cookie=services.browsers.csrf, signed_in=signed_in),
        headers={"content-security-policy": explorer.content_security_policy(nonce)},
    )


async def _visitor(request: Request, services: Services) -> Actor | None:
    """Whose browser it is, if they are still what its cookie says."""
    token = services.browsers.visitor(request)
    if token is None:
        return None
    actor = token.actor
    still = await services.database.fetch_value(
        f"SELECT {guard('$1', '$2')}", actor.account_id, actor.auth_version
    )
    return actor if still else None


async def unanswered(request: Request, error: Exception) -> Response:
    """What no route answers is named; other origins' pages are told nothing else either (there is no CORS)."""
    assert isinstance(error, HTTPException)
    code, message = _UNANSWERED.get(error.status_code, ("BAD_REQUEST", error.detail))
    return JSONResponse(
        {"errors": [{"message": message, "extensions": {"code": code}}]}, error.status_code, error.headers
    )


_UNANSWERED = {
    404: ("NOT_FOUND", "There is nothing at this address."),
    405: (
        "METHOD_NOT_ALLOWED",
        "This address is not asked so: see `Allow`. Other origins' pages may not ask.",
    ),
}


class _Kept(StaticFiles):
    """Files whose addresses change with their content."""

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        response = super().file_response(*arguments, **named)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


@contextlib.contextmanager
def _if_it_answers() -> Iterator[None]:
    """What the database does not answer in time is left out."""
    try:
        yield
    except Exception as error:
        if not may_succeed_later(error):
            raise


async def healthz(request: Request) -> Response:
    """The process is alive."""
    return JSONResponse({"alive": True})


async def readyz(request: Request) -> Response:
    """The process can serve: the database answers, migrations are at head, the feed is heard.

    Which of them is amiss is for operators.
    """
    services: Services = request.app.state.services
    checks = {"database": False, "migrations": False, "feed": services.feed.connected}
    with _if_it_answers():
        checks["migrations"] = await migrate.at_head(services.database)
        checks["database"] = True
    ready = all(checks.values()) and request.app.state.prepared.is_set()
    answer: dict[str, object] = {"ready": ready}
    if is_operator(request, services.settings):
        answer |= checks
        if request.app.state.unfit:
            answer["reason"] = request.app.state.unfit
    return JSONResponse(answer, 200 if ready else 503)


_BEDS = Statement(
    f"SELECT {bed_status('b')} AS status, count(*) AS beds FROM bed b WHERE b.archived_at IS NULL GROUP BY 1"
)


async def metrics(request: Request) -> Response:
    """Prometheus' text form, for operators."""
    services: Services = request.app.state.services
    if not is_operator(request, services.settings):
        wanted = {"www-authenticate": "Bearer"} if services.settings.metrics_token else {}
        return PlainTextResponse(
            "Metrics are for operators: see EKOYKA_METRICS_TOKEN and EKOYKA_METRICS_NETWORKS.\n",
            401 if wanted else 403,
            wanted,
        )
    beds: dict[str, int] = {}
    with _if_it_answers():
        if request.app.state.prepared.is_set():
            async with services.database.transaction(ward=NETWORK) as session:
                beds = {row.status: row.beds for row in await _BEDS.rows(session)}
    text = metrics_text(
        pools=services.database.pool_use,
        beds=beds,
        plans={"hit": services.planner.plans.hits, "miss": services.planner.plans.misses},
        feed_connected=services.feed.connected,
        many_processes=services.settings.workers > 1,
    )
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def from_environment() -> Starlette:
    """The application as uvicorn's worker processes make it."""
    return create_app(Settings())
