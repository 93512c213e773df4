"""Subscribers of the feed who come back with their cursor whatever happens, and keep account of what they were told."""

from __future__ import annotations

import asyncio
import base64
import random
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from ekoyka.graph.ids import decode
from tests.chaos.deployment import Deployment
from tests.chaos.history import RETRYABLE, now

_FEED = """subscription ($id: ID!, $after: String) { bedAvailability(dispensaryId: $id, after: $after) {
  kind cursor changes { cursor change occurredAt bed { id } } } }"""
# A server says that it stops; or a socket was cut, which has no code of its own.
_COME_BACK = {1006, 1012}


def place_of(cursor: str) -> int:
    """The number in a cursor."""
    return int(base64.b64decode(cursor).split()[1])


@dataclass
class Subscriber:
    """One client of one dispensary's feed, at one server; ``roams``: at either, whichever it comes to."""

    here: Deployment
    number: int
    dispensary: str
    token: str
    chance: random.Random
    roams: bool = False
    # (cursor, change, bed) of every change told, and what was not as it should be.
    told: list[tuple[int, str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    first: int | None = None
    cursor: str | None = None
    came_back: int = 0
    _heard: list[tuple[float, float]] = field(default_factory=list)

    @property
    def topic(self) -> str:
        """The feed's name inside the server."""
        return f"beds:{decode(self.dispensary)[1]}"

    async def follow(self) -> None:
        """Until it is cancelled."""
        while True:
            if self.roams:
                self.number = self.chance.randrange(len(self.here.servers))
            try:
                await self._once()
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd is not None else 1006
                if code not in _COME_BACK:
                    self.wrong.append(f"the socket was closed with {code}")
            except (OSError, InvalidHandshake):
                pass
            self.came_back += 1
            await asyncio.sleep(self.chance.uniform(0.05, 0.3))

    async def _once(self) -> None:
        url = self.here.servers[self.number].url.replace("http", "ws") + "/graphql"
        protocols = [Subprotocol("graphql-transport-ws")]
        async with connect(url, subprotocols=protocols, open_timeout=3, ping_interval=None) as socket:
            payload = {"Authorization": f"Bearer {self.token}"}
            await socket.send(orjson.dumps({"type": "connection_init", "payload": payload}).decode())
            async for message in socket:
                frame = orjson.loads(message)
                match frame["type"]:
                    case "connection_ack":
                        variables = {"id": self.dispensary, "after": self.cursor}
                        body = {"query": _FEED, "variables": variables}
                        await socket.send(
                            orjson.dumps({"id": "1", "type": "subscribe", "payload": body}).decode()
                        )
                    case "next":
                        self._take(frame["payload"]["data"]["bedAvailability"])
                    case "error":
                        code = frame["payload"][0]["extensions"]["code"]
                        if code not in RETRYABLE:
                            self.wrong.append(f"the subscription ended with {code}")
                        return
                    case _:
                        self.wrong.append(f"an unexpected {frame['type']}")

    def _take(self, event: dict[str, Any]) -> None:
        reached = place_of(event["cursor"])
        known = place_of(self.cursor) if self.cursor is not None else None
        if event["kind"] == "SNAPSHOT":
            if known is None:
                self.first = reached
            elif reached != known:
                self.wrong.append(f"a snapshot at {reached}, told up to {known}")
        for change in event["changes"]:
            number = place_of(change["cursor"])
            last = self.told[-1][0] if self.told else self.first
            if last is None or number != last + 1:
                self.wrong.append(f"{number} was told after {last}")
            self.told.append((number, change["change"], str(decode(change["bed"]["id"])[1])))
            self._heard.append((datetime.fromisoformat(change["occurredAt"]).timestamp(), now()))
        self.cursor = event["cursor"]

    def heard_after(self, instant: float) -> float | None:
        """Seconds from the instant to the first event of a change made since; None: not yet."""
        heard = min((told for happened, told in self._heard if happened >= instant), default=None)
        return None if heard is None else heard - instant
