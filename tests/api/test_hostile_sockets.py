"""Whatever a client sends on a socket, or does not send, the socket ends with a code that says why."""

import asyncio
import struct
import time
from pathlib import Path
from typing import Any

from ekoyka.api.intake import PATIENCE_S
from ekoyka.api.outlets import FLOOD_FRAMES
from ekoyka.api.sockets import LONGEST_ID
from ekoyka.settings import Settings
from tests.client import gid
from tests.factories import Factory
from tests.feed import FEED, QUIET, token
from tests.servers import Server, Socket, inside, ready, running, start
from tests.wire import BINARY, CLOSE, CONT, PING, PONG, TEXT, Wire, frame, message

CANARY = "Канарейкин"
ASK: dict[str, Any] = {"type": "subscribe", "id": "1", "payload": {"query": "{ __typename }"}}

# Half a megabyte of the schema's descriptions.
_PARTS = [
    f"s{number}: __schema {{ types {{ description fields {{ name description }} }} }}" for number in range(10)
]
LONG = "{" + " ".join(_PARTS) + "}"

# What is sent on a socket that was just opened, and the code with which it ends.
BEFORE: dict[str, tuple[bytes, int]] = {
    "no JSON": (message("{"), 4400),
    "nothing": (message(""), 4400),
    "null": (message("null"), 4400),
    "a number": (message("1"), 4400),
    "5,000 digits": (message("1" * 5000), 4400),
    "5,000 digits in an id": (
        message('{"type":"subscribe","id":' + "1" * 5000 + ',"payload":{"query":"{x}"}}'),
        4400,
    ),
    "a list": (message([ASK]), 4400),
    "NaN": (message('{"type":NaN}'), 4400),
    "deep nesting": (
        message('{"type":"ping","payload":' + '{"a":' * 20_000 + "1" + "}" * 20_000 + "}"),
        4400,
    ),
    "lists in lists": (message("[" * 100_000), 4400),
    "a lone surrogate": (message('{"type":"\\ud800"}'), 4400),
    "no type": (message({}), 4400),
    "an unknown type": (message({"type": CANARY * 1000}), 4400),
    "a type that is none": (message({"type": {"a": 1}}), 4400),
    "an introduction of the wrong kind": (message({"type": "connection_init", "payload": [1]}), 4400),
    "a ping of the wrong kind": (message({"type": "ping", "payload": "x"}), 4400),
    "a pong of the wrong kind": (message({"type": "pong", "payload": 1}), 4400),
    "a token of the wrong kind": (
        message({"type": "connection_init", "payload": {"authorization": {"a": 1}}}),
        4401,
    ),
    "a token that is too long": (
        message({"type": "connection_init", "payload": {"authorization": "Bearer " + "x" * 200_000}}),
        4401,
    ),
    "a question before the introduction": (message(ASK), 4401),
    "a renewal before the introduction": (
        message({"type": "ping", "payload": {"authorization": "Bearer x"}}),
        4401,
    ),
    "two introductions": (message({"type": "connection_init"}) * 2, 4429),
    "bytes": (frame(BINARY, b"{}"), 4400),
    "no UTF-8": (message(b"\xff"), 1007),
    "no UTF-8 in parts": (frame(TEXT, b"\xd0", fin=False) + frame(CONT, b"\x28"), 1007),
    "a frame that is too large": (frame(TEXT, b"x" * (256 * 1024 + 1)), 1009),
    "a megabyte": (frame(TEXT, b"x" * (1 << 20)), 1009),
    "a frame that claims eight exabytes": (frame(TEXT, size=(1 << 63) - 1), 1009),
    "parts that are too large together": (
        frame(TEXT, b"x" * 200_000, fin=False) + frame(CONT, b"x" * 200_000),
        1009,
    ),
    "an unmasked frame": (frame(TEXT, b"{}", mask=False), 1002),
    "an opcode that is none": (frame(3, b"{}"), 1002),
    "reserved bits": (frame(TEXT | 0x40, b"{}"), 1002),
    "a part of nothing": (frame(CONT, b"{}"), 1002),
    "a message amid another": (frame(TEXT, b"{", fin=False) + frame(TEXT, b"{}"), 1002),
    "a ping that is too large": (frame(PING, b"x" * 126), 1002),
    "a ping in parts": (frame(PING, b"x", fin=False), 1002),
    "a close without a whole code": (frame(CLOSE, b"\x03"), 1002),
    "a close with a code that is none": (frame(CLOSE, struct.pack("!H", 1005)), 1002),
    "a close that is no UTF-8": (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
    "a close": (frame(CLOSE, struct.pack("!H", 1000)), 1000),
    "a flood of pings": (frame(PING) * (FLOOD_FRAMES * 10), 4429),
    "a flood of pongs": (frame(PONG) * (FLOOD_FRAMES * 10), 4429),
    "a flood of empty parts": (frame(TEXT, fin=False) + frame(CONT, fin=False) * (FLOOD_FRAMES * 10), 4429),
    "a flood of pings of the protocol": (message({"type": "ping"}) * (FLOOD_FRAMES * 10), 4429),
}

# As above, on a socket of a doctor's that was acknowledged.
AFTER: dict[str, tuple[bytes, int]] = {
    "no id": (message({"type": "subscribe", "payload": {"query": "{ __typename }"}}), 4400),
    "an empty id": (message({**ASK, "id": ""}), 4400),
    "an id that is too long": (message({**ASK, "id": "x" * (LONGEST_ID + 1)}), 4400),
    "an id that is none": (message({**ASK, "id": {"a": 1}}), 4400),
    "no payload": (message({"type": "subscribe", "id": "1"}), 4400),
    "null as the payload": (message({**ASK, "payload": None}), 4400),
    "no query": (message({**ASK, "payload": {}}), 4400),
    "a query that is none": (message({**ASK, "payload": {"query": ["{ x }"]}}), 4400),
    "variables that are none": (message({**ASK, "payload": {"query": "{ x }", "variables": "x"}}), 4400),
    "a name that is none": (message({**ASK, "payload": {"query": "{ x }", "operationName": 5}}), 4400),
    "a completion without an id": (message({"type": "complete"}), 4400),
    "a completion of an id that is none": (message({"type": "complete", "id": []}), 4400),
    "a second introduction": (message({"type": "connection_init"}), 4429),
    "a renewal with nonsense": (message({"type": "ping", "payload": {"authorization": f"Bearer {CANARY}"}}), 4401),
    "a renewal with nothing": (message({"type": "ping", "payload": {"authorization": None}}), 4401),
}  # fmt: skip


async def _ends(server: Server, sent: bytes, access: str | None = None) -> tuple[int, str]:
    async with Wire.open(server) as wire:
        if access is not None:
            await wire.begin(access)
        await wire.send(sent)
        return await wire.closed(), wire.reason


async def test_whatever_is_sent_that_is_no_message_ends_the_socket_with_a_code(
    settings: Settings, make: Factory, tmp_path: Path
) -> None:
    place = await make.dispensary()
    access = token(await make.actor(doctor_of=(place,)))
    watch = {"query": FEED, "variables": {"id": gid("Dispensary", place)}}
    twice = message({**ASK, "id": "x" * LONGEST_ID, "payload": watch}) * 2
    log = tmp_path / "server.log"
    server = await start(settings, log=log, EKOYKA_LOG_LEVEL="INFO", **QUIET)
    try:
        await asyncio.wait_for(ready(server), 60)
        seen = {name: await _ends(server, sent) for name, (sent, _) in BEFORE.items()}
        seen |= {name: await _ends(server, sent, access) for name, (sent, _) in AFTER.items()}
        seen["an id that is in use"] = await _ends(server, twice, access)
        for protocol in (None, "graphql-ws", "nonsense"):
            async with Wire.open(server, protocol=protocol) as wire:
                seen[f"protocol {protocol}"] = await wire.closed(), wire.reason
        # The server is as it was.
        async with Wire.open(server) as wire:
            await wire.begin(access)
            await wire.send(message({"type": "complete", "id": "unknown"}), message(ASK))
            last = await wire.hear()
    finally:
        status = await server.stop()

    expected = {name: code for name, (_, code) in (BEFORE | AFTER).items()}
    expected |= {"an id that is in use": 4409}
    expected |= {f"protocol {protocol}": 4406 for protocol in (None, "graphql-ws", "nonsense")}
    assert {name: code for name, (code, _) in seen.items()} == expected
    assert all(reason for name, (_, reason) in seen.items() if name != "a close"), seen
    assert last["payload"] == {"data": {"__typename": "Query"}}
    assert status == 0
    said = log.read_text()
    assert "Traceback" not in said
    assert "request_failed" not in said
    for text in (said, str(seen)):
        assert CANARY not in text


async def test_who_says_nothing_or_drips_is_cut_off_and_says_why(settings: Settings) -> None:
    async def dripping(server: Server, first: bytes, drop: bytes) -> tuple[int, float]:
        async with Wire.open(server) as wire:
            began = time.monotonic()
            ended = asyncio.create_task(wire.closed())
            await wire.send(first)
            while not ended.done():
                await wire.send(drop)
                await asyncio.wait([ended], timeout=0.3)
            return ended.result(), time.monotonic() - began

    init = message({"type": "connection_init"})
    async with running(settings, 1, **QUIET) as [server]:
        seen = await asyncio.gather(
            dripping(server, b"", b""),
            dripping(server, frame(PING), frame(PING)),
            dripping(server, message({"type": "ping"}), message({"type": "ping"})),
            dripping(server, init + frame(TEXT, size=1000), b"x"),
            dripping(server, init + frame(TEXT, b"{", fin=False), frame(CONT, b"{", fin=False)),
            dripping(server, init + frame(TEXT, b"{", fin=False), frame(CONT, fin=False) + frame(PING)),
            *(dripping(server, init + frame(TEXT, size=1000), b"x") for _ in range(50)),
        )

    assert {code for code, _ in seen} == {4408}
    assert all(PATIENCE_S - 1 < took_s < PATIENCE_S + 8 for _, took_s in seen), seen


async def test_a_handshake_that_is_none_has_an_http_answer(settings: Settings) -> None:
    upgrade = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    key = b"sec-websocket-key: " + b"a" * 22 + b"==\r\n"
    get = b"GET /graphql HTTP/1.1\r\nhost: x\r\n"
    heads = {
        "no key": (get + upgrade, 400),
        "a key that is none": (get + upgrade + b"sec-websocket-key: x\r\n", 400),
        "another version": (get + upgrade.replace(b"13", b"12") + key, 400),
        "POST": (get.replace(b"GET", b"POST") + upgrade + key, 405),
        "200 fields": (get + upgrade + key + b"x: 1\r\n" * 200, 431),
        "a field of 10,000 bytes": (get + upgrade + key + b"x: " + b"y" * 10_000 + b"\r\n", 431),
        "another origin": (get + upgrade + key + b"origin: https://evil.example\r\n", 403),
        "another place": (get.replace(b"/graphql", b"/nowhere") + upgrade + key, 403),
    }
    seen = {}
    async with running(settings, 1, **QUIET) as [server]:
        for name, (head, _) in heads.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head + b"\r\n")
            answer = await asyncio.wait_for(reader.read(), 5)
            seen[name] = int(answer.split()[1]) if answer else 0
            writer.close()

    assert seen == {name: status for name, (_, status) in heads.items()}


async def test_who_answers_no_ping_or_takes_no_answer_is_cut_off_and_the_rest_goes_on(
    settings: Settings,
) -> None:
    async with (
        inside(settings, ws_ping_interval=0.5, ws_ping_timeout=0.5) as server,
        Wire.open(server) as silent,
        Wire.open(server) as deaf,
        Socket.open(server, None) as usual,
    ):
        await usual.acknowledged()
        await silent.begin()
        await deaf.begin()
        # Asks for much, and reads no answer.
        deaf.stop_reading()
        for number in range(20):
            await deaf.send(message({"type": "subscribe", "id": str(number), "payload": {"query": LONG}}))
        assert (await silent.closed(20), silent.reason) == (4408, "No answer to a ping.")
        gone = time.monotonic() + 20
        while not deaf.writer.transport.is_closing():
            assert time.monotonic() < gone
            await deaf.send(frame(PONG), pause_s=0.2)
        answer = await usual.ask("1", {"query": "{ __typename }"})

    assert answer["payload"] == {"data": {"__typename": "Query"}}
