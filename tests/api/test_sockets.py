"""graphql-transport-ws, rule by rule; and the feed under a server that offers no direct way to its sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import orjson
import pytest
from asgi_lifespan import LifespanManager
from httpx_ws import AsyncWebSocketSession, WebSocketDisconnect, aconnect_ws
from httpx_ws.transport import ASGIWebSocketTransport
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from ekoyka.api import sockets
from ekoyka.api.outlets import outlet_of, text_frame, text_of
from ekoyka.app import create_app
from ekoyka.database import Database
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.queries import BedChange, publish_beds
from ekoyka.settings import Settings
from tests.api.test_feed import FEED
from tests.client import gid
from tests.factories import Factory
from tests.feed import token
from tests.servers import TOKEN_KEY

SLOW_QUERY = "{ dispensaries { totalCount } }"


@dataclass
class Talk:
    """A socket, and what is said on it."""

    session: AsyncWebSocketSession

    async def say(self, *messages: Any) -> None:
        for message in messages:
            await self.session.send_text(
                message if isinstance(message, str) else orjson.dumps(message).decode()
            )

    async def hear(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(await self.session.receive_text(timeout=20))
        return found

    async def begin(self, actor: Actor | None = None) -> None:
        payload = {"Authorization": f"Bearer {token(actor)}"} if actor else {}
        await self.say({"type": "connection_init", "payload": payload})
        assert await self.hear() == {"type": "connection_ack"}

    async def closed(self) -> int:
        try:
            while True:
                await self.session.receive(timeout=20)
        except WebSocketDisconnect as ended:
            return ended.code


@asynccontextmanager
async def talking(settings: Settings, count: int = 1) -> AsyncIterator[list[Talk]]:
    """So many sockets of an application in this process, whose server is not uvicorn."""
    settings = settings.model_copy(update={"token_keys": Settings(token_keys=TOKEN_KEY).token_keys})
    app = create_app(settings)
    async with LifespanManager(app) as manager:
        await app.state.prepared.wait()
        async with httpx.AsyncClient(
            transport=ASGIWebSocketTransport(manager.app), base_url="http://test"
        ) as http:
            talks: list[Talk] = []

            @asynccontextmanager
            async def opened(left: int) -> AsyncIterator[None]:
                if left == 0:
                    yield
                    return
                async with aconnect_ws("/graphql", http, subprotocols=["graphql-transport-ws"]) as session:  # type: ignore[var-annotated]  # its kind has a default
                    talks.append(Talk(session))
                    async with opened(left - 1):
                        yield

            async with opened(count):
                yield talks


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "[]",
        '"text"',
        '{"type":"nonsense"}',
        "{}",
        '{"type":"connection_init","payload":[1]}',
        '{"type":"subscribe","id":"1"}',
        '{"type":"subscribe","id":"1","payload":1}',
        '{"type":"subscribe","id":"1","payload":{}}',
        '{"type":"subscribe","id":1,"payload":{"query":"{ __typename }"}}',
        '{"type":"subscribe","id":"","payload":{"query":"{ __typename }"}}',
        '{"type":"subscribe","id":{},"payload":{"query":"{ __typename }"}}',
        '{"type":"subscribe","id":"1","payload":{"query":1}}',
        '{"type":"subscribe","id":"1","payload":{"query":"{ __typename }","variables":[]}}',
        '{"type":"subscribe","id":"1","payload":{"query":"{ __typename }","operationName":1}}',
        '{"type":"complete"}',
        '{"type":"complete","id":{}}',
    ],
)
async def test_a_malformed_message_closes_the_socket_with_4400(settings: Settings, message: str) -> None:
    async with talking(settings) as [talk]:
        await talk.say(message)
        assert await talk.closed() == 4400


async def test_bytes_are_no_message(settings: Settings) -> None:
    async with talking(settings) as [talk]:
        await talk.session.send_bytes(b"{}")
        assert await talk.closed() == 4400


async def test_nothing_is_asked_before_the_acknowledgement(settings: Settings) -> None:
    async with talking(settings) as [talk]:
        await talk.say({"type": "subscribe", "id": "1", "payload": {"query": "{ __typename }"}})
        assert await talk.closed() == 4401


async def test_whoever_does_not_introduce_themselves_in_time_is_sent_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "INIT_PATIENCE", timedelta(milliseconds=50))
    async with talking(settings) as [talk]:
        assert await talk.closed() == 4408


async def test_an_introduction_is_made_once(settings: Settings) -> None:
    async with talking(settings) as [talk]:
        await talk.begin()
        await talk.say({"type": "connection_init"})
        assert await talk.closed() == 4429


async def test_an_id_is_used_by_one_operation_at_a_time(settings: Settings, make: Factory) -> None:
    place = await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    ask = {
        "type": "subscribe",
        "id": "1",
        "payload": {"query": FEED, "variables": {"id": gid("Dispensary", place)}},
    }
    async with talking(settings) as [talk]:
        await talk.begin(doctor)
        await talk.say(ask)
        assert (await talk.hear())["payload"]["data"]["bedAvailability"]["kind"] == "SNAPSHOT"
        await talk.say({"type": "complete", "id": "1"}, {"type": "complete", "id": "unknown"}, ask)
        assert (await talk.hear())["type"] == "next"
        await talk.say(ask)
        assert await talk.closed() == 4409


async def test_pings_are_answered_and_pongs_taken(settings: Settings) -> None:
    async with talking(settings) as [talk]:
        await talk.say({"type": "ping"}, {"type": "pong"}, {"type": "ping", "payload": {"a": 1}})
        assert [await talk.hear(), await talk.hear()] == [{"type": "pong"}] * 2
        await talk.begin()


async def test_queries_and_changes_are_answered_once_and_completed(settings: Settings, make: Factory) -> None:
    admin = await make.actor(superadmin=True)
    async with talking(settings) as [talk]:
        await talk.begin(admin)
        for key, query in (("a", SLOW_QUERY), ("b", "{ nonsense }"), ("c", "{")):
            await talk.say({"type": "subscribe", "id": key, "payload": {"query": query}})
        heard = [await talk.hear() for _ in range(4)]

    by_id = {key: [item for item in heard if item["id"] == key] for key in "abc"}
    assert by_id["a"] == [
        {"id": "a", "type": "next", "payload": {"data": {"dispensaries": {"totalCount": 0}}}},
        {"id": "a", "type": "complete"},
    ]
    assert [(item["type"], item["payload"][0]["extensions"]["code"]) for item in by_id["b"] + by_id["c"]] == [
        ("error", "GRAPHQL_VALIDATION_FAILED"),
        ("error", "GRAPHQL_PARSE_FAILED"),
    ]


async def test_one_socket_has_so_many_operations_and_no_more(settings: Settings, make: Factory) -> None:
    place = await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    async with talking(settings.model_copy(update={"subscriptions_per_socket": 2})) as [talk]:
        await talk.begin(doctor)
        heard = []
        for key in "abc":
            payload = {"query": FEED, "variables": {"id": gid("Dispensary", place)}}
            await talk.say({"type": "subscribe", "id": key, "payload": payload})
            heard.append((await talk.hear())["type"])
    assert heard == ["next", "next", "error"]


async def test_without_a_direct_way_to_its_sockets_the_feed_is_the_same(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed = await make.bed(place)
    doctor, other = await make.actor(doctor_of=(place,)), await make.actor(doctor_of=(place,))
    async with talking(settings, 3) as talks:
        for talk, actor in zip(talks, (doctor, doctor, other), strict=True):
            await talk.begin(actor)
            await talk.say(
                {
                    "type": "subscribe",
                    "id": "Ид \\",
                    "payload": {"query": FEED, "variables": {"id": gid("Dispensary", place)}},
                }
            )
            assert (await talk.hear())["payload"]["data"]["bedAvailability"]["kind"] == "SNAPSHOT"
        for _ in range(2):
            async with database.transaction() as session:
                await publish_beds(session, place.id, (bed.id, BedChange.CORRECTED))
            for talk in talks:
                frame = await talk.hear()
                assert frame["id"] == "Ид \\"
                [change] = frame["payload"]["data"]["bedAvailability"]["changes"]
                assert (change["change"], change["bed"]) == ("CORRECTED", {"id": gid("Bed", bed)})
        await database.fetch("UPDATE account SET auth_version = 2 WHERE id = $1", other.account_id)
        async with database.transaction() as session:
            await publish_beds(session, place.id, (bed.id, BedChange.CORRECTED))
        assert await talks[2].closed() == 4403
        assert (await asyncio.gather(*(talk.hear() for talk in talks[:2])))[0]["type"] == "next"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
def test_ready_frames_are_those_of_the_library(size: int) -> None:
    message = ("ж" * (size // 2) + "x" * (size % 2)).encode()
    library = ServerProtocol(state=OPEN)
    library.send_text(message)

    assert text_frame(message) == b"".join(library.data_to_send())
    assert text_of(text_frame(message)) == message.decode()


class _Stuck:
    """A socket whose client takes one message and then no more, until it is let go on."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {}
        self.sent: list[str] = []
        self.ended: tuple[int, str] | None = None
        self.go_on = asyncio.Event()
        self.over = asyncio.Event()

    async def send_text(self, text: str) -> None:
        self.sent.append(text)
        await self.go_on.wait()

    async def close(self, code: int, reason: str) -> None:
        self.ended = (code, reason)
        self.over.set()


async def test_under_any_server_what_a_client_does_not_take_is_counted_and_not_waited_for() -> None:
    stuck = _Stuck()
    outlet = outlet_of(stuck)  # type: ignore[arg-type]
    frames = [text_frame(word) for word in (b"one", b"two", b"three")]
    for frame in frames:
        outlet.write(frame)
    await asyncio.sleep(0)
    waiting = outlet.backlog()
    outlet.end(4413, "slow")
    outlet.write(frames[0])
    left = outlet.backlog()
    stuck.go_on.set()
    await stuck.over.wait()

    assert (waiting, left) == (sum(map(len, frames)), 0)
    assert (stuck.sent, stuck.ended) == (["one"], (4413, "slow"))
