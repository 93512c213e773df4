"""What operators see: structured logs with request ids, and Prometheus metrics.

Neither ever holds a name, diagnosis, token, document number, address of a person, query text or variable:
log lines carry event names, codes, routes as templates, counts and ids of requests.
"""

import asyncio
import itertools
import logging
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from time import perf_counter
from typing import Any

import structlog
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ekoyka.settings import LogFormat, Settings

log = structlog.get_logger(__name__)
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

OPERATIONS = Counter(
    "ekoyka_operations_total", "GraphQL operations by type and outcome.", ["type", "outcome"]
)
EXECUTION = Histogram(
    "ekoyka_execution_seconds",
    "Time from request to answer of a GraphQL operation.",
    ["type"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
STATEMENTS = Counter("ekoyka_statements_total", "SQL statements sent.")
SUBSCRIPTIONS = Gauge("ekoyka_subscriptions_open", "Subscriptions under way.", multiprocess_mode="livesum")
FEED_LAG = Histogram(
    "ekoyka_feed_lag_seconds",
    "Age of the oldest change that an event tells of, when the event is read.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)
FEED_READS = Counter("ekoyka_feed_reads_total", "Reads of the feed's events, each for all who ask the same.")
FEED_FRAMES = Counter("ekoyka_feed_frames_total", "Frames sent to subscribers of the feed.")
FEED_DROPPED = Counter("ekoyka_feed_dropped_total", "Sockets closed because their clients read too slowly.")
RESERVATIONS_LAPSED = Counter("ekoyka_reservations_lapsed_total", "Reservations ended by their time.")

# Where a socket's scope says with which code it was closed, if that went around ASGI.
CLOSED_WITH = "ekoyka.closed_with"

# What an answer begins with: a page's, a socket's.
_BEGINNINGS = {"http.response.start", "websocket.accept", "websocket.http.response.start"}

# Callers may name their request; nothing else of theirs gets into a log line.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# Ids of requests that have none: the process by chance, the request by its number.
_PROCESS = secrets.token_hex(6)
_NUMBERS = itertools.count(1)


@cache
def _counters(kind: str, outcome: str) -> tuple[Counter, Histogram]:
    return OPERATIONS.labels(kind, outcome), EXECUTION.labels(kind)


def count_operation(kind: str, outcome: str, seconds: float) -> None:
    """A GraphQL operation of this type ended so, after so long."""
    counter, histogram = _counters(kind, outcome)
    counter.inc()
    histogram.observe(seconds)


def configure_logs(settings: Settings) -> None:
    """All logs, the libraries' too, are one JSON object a line on standard error (or coloured, for a person)."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if settings.log_format is LogFormat.JSON
        else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.processors.dict_tracebacks, renderer]
        if settings.log_format is LogFormat.JSON
        else [*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.log_level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    # Libraries say nothing below INFO: some of them would write whole frames and rows.
    level = max(logging.INFO, logging.getLevelName(settings.log_level))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # These would write addresses, statements or query texts.
    for noisy in (
        "uvicorn.access",
        "sqlalchemy",
        "strawberry",
        "asyncpg",
        "httpx2",
        "alembic",
        "procrastinate",
        "psycopg",
    ):
        logging.getLogger(noisy).setLevel(logging.CRITICAL if noisy != "alembic" else logging.WARNING)
    # uvicorn's line for each socket has the client's address, and the query that it came with.
    logging.getLogger("uvicorn.error").addFilter(_is_no_socket)


def _is_no_socket(record: logging.LogRecord) -> bool:
    return '"WebSocket' not in str(record.msg)


def _add_request_id(_logger: Any, _method: str, event: Any) -> Any:
    if (current := request_id.get()) is not None:
        event["request_id"] = current
    return event


_INTERNAL = (
    b'{"errors":[{"message":"Something went wrong on our side.",'
    b'"extensions":{"code":"INTERNAL","requestId":"%s"}}]}'
)
_GIVEN_UP = (
    b'{"errors":[{"message":"The server stops, and this was given up. A change may have been made or not: '
    b'send it again with the same idempotencyKey.","extensions":{"code":"TIMED_OUT"}}],"data":null}'
)


def where(error: BaseException | None) -> dict[str, Any]:
    """The kind and place of an exception, for the log: never its text, which may hold values of rows."""
    trace = error.__traceback__ if error is not None else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return {
        "kind": type(error).__name__,
        "sqlstate": getattr(getattr(error, "orig", error), "sqlstate", None),
        "module": trace.tb_frame.f_globals.get("__name__") if trace else None,
        "line": trace.tb_lineno if trace else None,
    }


class RequestLog:
    """ASGI middleware: every request has an id, which is in its answer and in every log line it causes.

    ``headers`` are what every answer has, a socket's handshake too, unless it says otherwise itself; ``route`` is
    the one that all of its requests take, where no router says which.
    """

    def __init__(
        self, app: ASGIApp, headers: Sequence[tuple[bytes, bytes]] = (), route: Route | None = None
    ) -> None:
        self.app = app
        self.headers = headers
        self.route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        current = (
            given.decode() if given and _REQUEST_ID.fullmatch(given) else f"{_PROCESS}-{next(_NUMBERS):x}"
        )
        mark = request_id.set(current)
        started, status = perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] in _BEGINNINGS:
                status = message.get("status", status)
                own = message.get("headers", ())
                said = {name for name, _ in own}
                message["headers"] = [
                    *own,
                    *[field for field in self.headers if field[0] not in said],
                    (b"x-request-id", current.encode()),
                ]
            elif message["type"] == "websocket.close":
                status = message.get("code", 1000)
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except asyncio.CancelledError:
            # A server that stops waits no longer; nothing else ends a request from outside.
            log.warning("request_given_up")
            if scope["type"] == "http" and status == 0:
                await sending(
                    {
                        "type": "http.response.start",
                        "status": 503,
                        "headers": [(b"content-type", b"application/json"), (b"retry-after", b"1")],
                    }
                )
                await sending({"type": "http.response.body", "body": _GIVEN_UP})
        except Exception as error:
            # The text of an exception may hold values of rows: its kind and place are logged, and no more.
            log.error("request_failed", **where(error))
            if scope["type"] == "http" and status == 0:
                await sending(
                    {
                        "type": "http.response.start",
                        "status": 500,
                        "headers": [(b"content-type", b"application/json")],
                    }
                )
                await sending({"type": "http.response.body", "body": _INTERNAL % current.encode()})
            elif scope["type"] == "websocket":
                await sending({"type": "websocket.close", "code": 1011})
        finally:
            route = self.route or scope.get("route")
            log.info(
                "request" if scope["type"] == "http" else "socket_closed",
                method=scope.get("method"),
                # The template: addresses themselves can hold codes and signatures.
                route=getattr(route, "path", None),
                status=scope.get(CLOSED_WITH, status),
                seconds=round(perf_counter() - started, 4),
            )
            request_id.reset(mark)


class _Now:
    """Values that are read when metrics are asked for."""

    def __init__(self) -> None:
        self.pools: dict[str, tuple[int, int]] = {}
        self.beds: dict[str, int] = {}
        self.plans: dict[str, int] = {}
        self.feed_connected = False

    def collect(self) -> Iterator[Metric]:
        use = GaugeMetricFamily("ekoyka_pool_connections", "Database connections.", labels=["pool", "state"])
        for name, (busy, size) in self.pools.items():
            use.add_metric([name, "busy"], busy)
            use.add_metric([name, "limit"], size)
        yield use
        beds = GaugeMetricFamily("ekoyka_beds", "Beds in the network by status.", labels=["status"])
        for status, count in self.beds.items():
            beds.add_metric([status], count)
        yield beds
        plans = CounterMetricFamily(
            "ekoyka_plans", "Plans of operations, found in this process's cache or made.", labels=["cache"]
        )
        for outcome, count in self.plans.items():
            plans.add_metric([outcome], count)
        yield plans
        yield GaugeMetricFamily(
            "ekoyka_feed_connected", "Whether this process hears the feed.", value=float(self.feed_connected)
        )


def metrics_text(
    *,
    pools: dict[str, tuple[int, int]],
    beds: dict[str, int],
    plans: dict[str, int],
    feed_connected: bool,
    many_processes: bool,
) -> bytes:
    """The metrics in Prometheus' text form; of all server processes where there are several."""
    now = _Now()
    now.pools, now.beds, now.plans, now.feed_connected = pools, beds, plans, feed_connected
    momentary = CollectorRegistry()
    momentary.register(now)
    lasting: CollectorRegistry = REGISTRY
    if many_processes:
        lasting = CollectorRegistry()
        multiprocess.MultiProcessCollector(lasting)  # type: ignore[no-untyped-call]
    return generate_latest(lasting) + generate_latest(momentary)
