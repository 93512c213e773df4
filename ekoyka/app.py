"""The application: routes, and what lives as long as the process.

Starts whether or not its database is there: until it is, fit and migrated, requests are answered with a
named error and `/readyz` says what is missing.
"""

import asyncio
import contextlib
import gc
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from pathlib import Path

import orjson
import structlog
from jinja2 import Environment, FileSystemLoader
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from strawberry import Schema

from ekoyka import explorer, feed, links, migrate, rates
from ekoyka.api.accounts import Accounts
from ekoyka.api.calendars import calendar
from ekoyka.api.context import Run, Services
from ekoyka.api.endpoint import Endpoint, language_of
from ekoyka.api.oauth import SECURITY_HEADERS, revoke, token
from ekoyka.api.permissions import STAFF
from ekoyka.api.schema import build_schema
from ekoyka.api.sockets import Sockets
from ekoyka.api.watching import Watching
from ekoyka.certificates.operations import facts_of, keep_pdf
from ekoyka.certificates.render import RenderBusy, Renderer, RenderFailed, Unprintable
from ekoyka.database import Database, DatabaseUnavailable, DatabaseUnfit
from ekoyka.documents import Documents
from ekoyka.feed import Feed
from ekoyka.graph.plan import Planner
from ekoyka.identity.credentials import PasswordHasher, Tokens, load_keys
from ekoyka.inpatient.queries import bed_status
from ekoyka.inpatient.reservations import lapse_reservations
from ekoyka.observability import RESERVATIONS_LAPSED, STATEMENTS, RequestLog, configure_logs, metrics_text
from ekoyka.settings import Mode, Settings

log = structlog.get_logger(__name__)

LARGEST_BODY_BYTES = 64 * 1024
STATIC = Path(__file__).parent / "static"
_PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent / "api" / "templates"), autoescape=True)


class Application(Starlette):
    """The routes; operations go straight to their endpoint, past what the other routes need on their way."""

    operations: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == "/graphql":
            scope["app"] = self
            await self.operations(scope, receive, send)
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
    database = Database(settings.database_url.get_secret_value(), settings, on_statement=STATEMENTS.inc)
    listener = Feed(database)
    services = Services(
        settings=settings,
        database=database,
        planner=Planner(schema._schema, introspectors=None if settings.mode is Mode.DEMO else STAFF),
        hasher=PasswordHasher(settings.password_hash_rounds),
        tokens=Tokens(keys, issuer=settings.token_issuer, ttl_s=settings.access_token_ttl_s),
        download_keys=tuple(links.derive(key) for key in keys),
        renderer=Renderer(timeout_s=settings.render_timeout_s),
        feed=listener,
        watching=Watching(database, listener, buffer_bytes=settings.feed_buffer_bytes),
        accounts=Accounts(database, listener),
        documents=Documents(database),
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # What is loaded now stays: the garbage collector need not look through it again and again.
        gc.collect()
        gc.freeze()
        async with database, services.feed:
            work = [
                asyncio.create_task(_prepare(app, database), name="prepare"),
                asyncio.create_task(
                    _every(settings.lapse_interval_s, lambda: _lapse(database)), name="lapse"
                ),
                asyncio.create_task(
                    _every(3600, lambda: feed.prune(database, keep_s=settings.feed_retention_s)), name="prune"
                ),
                asyncio.create_task(_every(600, lambda: rates.sweep(database)), name="sweep"),
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

    sockets = Sockets(schema, operations_per_socket=settings.subscriptions_per_socket)
    endpoint = Route("/graphql", Endpoint(schema, largest_bytes=LARGEST_BODY_BYTES), methods=["POST"])
    app = Application(
        lifespan=lifespan,
        max_body_size=LARGEST_BODY_BYTES,
        middleware=[Middleware(RequestLog)],
        routes=[
            Route("/", lambda request: RedirectResponse("/graphql"), methods=["GET"]),
            endpoint,
            Route("/graphql", explore, methods=["GET"]),
            WebSocketRoute("/graphql", sockets),
            Route("/auth/token", token, methods=["POST"]),
            Route("/auth/refresh", token, methods=["POST"]),
            Route("/auth/revoke", revoke, methods=["POST"]),
            Route("/certificates/{name}.pdf", download, methods=["GET"]),
            Route("/calendars/{name}.ics", calendar, methods=["GET"]),
            Route("/verify/{code}", _verifier(schema), methods=["GET"]),
            Route("/healthz", healthz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Mount("/static", StaticFiles(directory=STATIC, check_dir=False)),
        ],
    )
    app.operations = RequestLog(endpoint.app, endpoint)
    app.state.schema = schema
    app.state.services = services
    app.state.prepared = asyncio.Event()
    app.state.unfit = None
    return app


async def _prepare(app: Starlette, database: Database) -> None:
    """The database is fit and migrated; tried until it is."""
    pause = 0.2
    while True:
        try:
            await database.check_fit()
            await migrate.upgrade(database)
        except (DatabaseUnavailable, DatabaseUnfit, DBAPIError, OSError) as error:
            reason = str(error) if isinstance(error, DatabaseUnfit) else "the database cannot be reached"
            if app.state.unfit != reason:
                log.warning("database_not_ready", reason=reason)
            app.state.unfit = reason
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5)
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


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """The work is done again and again; a failure is logged and tried again."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception as error:  # a periodic job outlives whatever goes wrong in one round
            log.warning("periodic_work_failed", kind=type(error).__name__)


async def _lapse(database: Database) -> None:
    while True:
        async with database.transaction() as session:
            lapsed = await lapse_reservations(session)
        if lapsed:
            RESERVATIONS_LAPSED.inc(lapsed)
        else:
            return


async def explore(request: Request) -> Response:
    """The explorer for a browser; programs are told how to ask."""
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
    nonce = secrets.token_urlsafe(16)
    return HTMLResponse(
        explorer.page(nonce=nonce),
        headers={**SECURITY_HEADERS, "content-security-policy": explorer.content_security_policy(nonce)},
    )


async def download(request: Request) -> Response:
    """A certificate's bytes, for whoever has its short-lived address; made now if they never were."""
    services: Services = request.app.state.services
    subject = links.read(services.download_keys, request.path_params["name"])
    if subject is None or not subject.isdigit():
        return PlainTextResponse(
            "Адрес недействителен или устарел: запросите новый.\n"
            "The address is not good (any more): ask for a new one.",
            403,
            SECURITY_HEADERS,
        )
    try:
        rows = await services.database.fetch(
            "SELECT pdf, number, year, facts::text AS facts FROM certificate WHERE id = $1", int(subject)
        )
        if not rows:
            return PlainTextResponse("Справки нет.\nThere is no such certificate.", 404, SECURITY_HEADERS)
        pdf = rows[0]["pdf"]
        if pdf is None:
            pdf = await services.renderer.render(facts_of(orjson.loads(rows[0]["facts"])))
            async with services.database.transaction() as session:
                pdf = await keep_pdf(session, certificate_id=int(subject), pdf=pdf)
    except Unprintable:
        return PlainTextResponse(
            "В данных справки есть знак, которого нет в шрифте: исправьте данные, аннулируйте справку и выдайте новую."
            "\nThe certificate has a character that no font has: correct the record, annul it and issue a new one.",
            422,
            SECURITY_HEADERS,
        )
    except (RenderBusy, RenderFailed, DatabaseUnavailable):
        return PlainTextResponse(
            "Сейчас не получилось: повторите через несколько секунд.\n"
            "Not possible right now: try again in a few seconds.",
            503,
            {**SECURITY_HEADERS, "retry-after": "3"},
        )
    filename = f"certificate-{rows[0]['number']}-{rows[0]['year']}.pdf"
    return Response(
        pdf,
        200,
        {
            **SECURITY_HEADERS,
            "content-disposition": f'inline; filename="{filename}"',
            "content-security-policy": "default-src 'none'; sandbox",
        },
        "application/pdf",
    )


def _verifier(schema: Schema) -> Callable[[Request], Awaitable[Response]]:
    """The public page behind a certificate's QR code: the same answer as the query's."""

    async def verify(request: Request) -> Response:
        run = Run(request.app.state.services, request, None, language_of(request), compiled=False)
        result = await schema.execute(
            "query ($code: String!) { certificateVerification(code: $code) "
            "{ number issuedOn checkedInOn checkedOutOn organisation annulled } }",
            variable_values={"code": request.path_params["code"]},
            context_value=run,
        )
        if any(isinstance(error.original_error, DatabaseUnavailable) for error in result.errors or ()):
            return PlainTextResponse(
                "Сейчас не получилось: повторите позже.\nNot possible right now: try again later.",
                503,
                {**SECURITY_HEADERS, "retry-after": "3"},
            )
        limited = [
            error.original_error
            for error in result.errors or ()
            if isinstance(error.original_error, rates.RateLimited)
        ]
        if limited:
            return PlainTextResponse(
                "Слишком часто: повторите позже.\nToo often: try again later.",
                429,
                {**SECURITY_HEADERS, "retry-after": str(limited[0].retry_after_s)},
            )
        found = (result.data or {}).get("certificateVerification")
        nonce = secrets.token_urlsafe(16)
        return HTMLResponse(
            _PAGES.get_template("verification.html.j2").render(found=found, nonce=nonce),
            200 if found else 404,
            {
                **SECURITY_HEADERS,
                "content-security-policy": (
                    f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; frame-ancestors 'none'"
                ),
            },
        )

    return verify


async def healthz(request: Request) -> Response:
    """The process is alive."""
    return JSONResponse({"alive": True})


async def readyz(request: Request) -> Response:
    """The process can serve: the database answers, migrations are at head, the feed is heard."""
    services: Services = request.app.state.services
    checks = {"database": False, "migrations": False, "feed": services.feed.connected}
    with contextlib.suppress(DatabaseUnavailable):
        checks["migrations"] = await migrate.at_head(services.database)
        checks["database"] = True
    ready = all(checks.values()) and request.app.state.prepared.is_set()
    answer = {
        "ready": ready,
        **checks,
        **({"reason": request.app.state.unfit} if request.app.state.unfit else {}),
    }
    return JSONResponse(answer, 200 if ready else 503)


async def metrics(request: Request) -> Response:
    """Prometheus' text form."""
    services: Services = request.app.state.services
    beds: dict[str, int] = {}
    with contextlib.suppress(DatabaseUnavailable):
        if request.app.state.prepared.is_set():
            rows = await services.database.fetch(
                f"SELECT {bed_status('b')} AS status, count(*) FROM bed b WHERE b.archived_at IS NULL GROUP BY 1"
            )
            beds = {row["status"]: row["count"] for row in rows}
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
