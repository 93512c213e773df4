"""The load: doctors who do things at random over HTTP, as clients would; and a probe of each server."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from tests.chaos.deployment import Beds, Deployment
from tests.chaos.history import RETRYABLE, History, Outcome, Request, now

# Longer than any operation may take: what a server has not answered by then, it never will.
PATIENCE_S = 20.0
# A real client's: it tries again soon, then less soon, and gives up at last.
_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 3.0)
_SELECTIONS = {
    "stayCheckIn": "StayCheckInInput ... on Stay { id version }",
    "stayTransfer": "StayTransferInput ... on Stay { id version } ... on VersionConflict { currentVersion }",
    "stayCheckOut": "StayCheckOutInput ... on Stay { id version } ... on VersionConflict { currentVersion }",
    "bedReserve": "BedReserveInput ... on Reservation { id }",
    "reservationRelease": "ReservationReleaseInput ... on Reservation { id }",
    "certificateIssue": "CertificateIssueInput ... on Certificate { id number downloadUrl }",
    "bedSetServiceState": "BedSetServiceStateInput ... on Bed { id version }",
}
DOCUMENTS = {
    name: f"mutation ($input: {text.partition(' ')[0]}!) {{ {name}(input: $input) "
    f"{{ __typename {text.partition(' ')[2]} ... on Refusal {{ code }} }} }}"
    for name, text in _SELECTIONS.items()
}
DOCUMENTS["bed"] = """query ($id: ID!) { bed(id: $id) { id status currentReservation { id }
  currentAssignment { stay { id version } } } }"""


async def send(
    http: httpx.AsyncClient, url: str, token: str, request: Request, variables: dict[str, Any]
) -> Request:
    """The request is sent once; what became of it stands in it."""
    try:
        answer = await http.post(
            f"{url}/graphql",
            json={"query": DOCUMENTS[request.field], "variables": variables},
            headers={"authorization": f"Bearer {token}", "x-request-id": request.id},
        )
        body = answer.json()
    except (httpx.ConnectError, httpx.ConnectTimeout):
        request.outcome, request.code = Outcome.NOT_DONE, "CONNECTION_REFUSED"
    except httpx.TransportError as error:
        request.outcome, request.code = Outcome.UNKNOWN, type(error).__name__
    except ValueError:
        request.outcome, request.code = Outcome.UNNAMED, f"HTTP {answer.status_code} without JSON"
    else:
        _read(request, body)
    request.ended = now()
    return request


def _read(request: Request, body: dict[str, Any]) -> None:
    if errors := body.get("errors"):
        request.code = errors[0].get("extensions", {}).get("code", "no code")
        request.outcome = RETRYABLE.get(request.code, Outcome.UNNAMED)
        return
    request.answer = body["data"][request.field] or {}
    if not request.answer:
        request.outcome, request.code = Outcome.UNNAMED, "nothing"
    elif "code" in request.answer:
        request.outcome, request.code = Outcome.REFUSED, request.answer["code"]
    else:
        request.outcome = Outcome.DONE


@dataclass
class Doctor:
    """One client: does one thing after another, on what it has just read."""

    here: Deployment
    history: History
    name: str
    token: str
    chance: random.Random
    stopped: asyncio.Event
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _ended: list[str] = field(default_factory=list)

    async def work(self) -> None:
        """Goes on until it is told to stop; what it has begun, it ends."""
        async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
            self._http = http
            while not self.stopped.is_set():
                place = self.chance.choice(self.here.places)
                bed = self.chance.choice(place.beds)
                seen = await self._ask("bed", {"id": bed})
                if seen is not None and seen.outcome is Outcome.DONE:
                    await self._act(place, bed, seen.answer)
                await asyncio.sleep(self.chance.uniform(0, 0.02))

    async def _act(self, place: Beds, bed: str, seen: dict[str, Any]) -> None:
        do = self.chance.random()
        patient = self.chance.choice(self.here.patients)
        if seen["currentAssignment"] is not None:
            stay = seen["currentAssignment"]["stay"]
            if do < 0.5:
                other = self.chance.choice([item for item in place.beds if item != bed])
                await self._change("stayTransfer", id=stay["id"], version=stay["version"], bedId=other)
            else:
                await self._check_out(stay)
        elif seen["currentReservation"] is not None and do < 0.7:
            kept = seen["currentReservation"]["id"]
            if do < 0.3:
                await self._change("reservationRelease", {"bedId": bed}, id=kept)
            else:
                await self._create("stayCheckIn", patientId=patient, bedId=bed, reservationId=kept)
        elif do < 0.7:
            await self._create("stayCheckIn", patientId=patient, bedId=bed)
        elif do < 0.9:
            until = datetime.fromtimestamp(now() + self.chance.uniform(0.1, 3), UTC).isoformat()
            whom = {"patientId": patient} if self.chance.random() < 0.5 else {}
            await self._create("bedReserve", bedId=bed, until=until, **whom)
        elif self._ended:
            await self._create("certificateIssue", stayId=self.chance.choice(self._ended))

    async def _check_out(self, stay: dict[str, Any]) -> None:
        paper = {"certificate": {"language": "ru"}} if self.chance.random() < 0.05 else {}
        done = await self._change(
            "stayCheckOut", id=stay["id"], version=stay["version"], outcome="DISCHARGED", **paper
        )
        if done is not None and done.outcome is Outcome.DONE:
            self._ended.append(stay["id"])

    async def _create(self, mutation: str, **input: Any) -> Request | None:
        """With a key, under which it may be sent again and again."""
        key = f"{self.name}-{next(self._numbers)}"
        return await self._ask(mutation, {**input, "idempotencyKey": key})

    async def _change(
        self, mutation: str, about: dict[str, Any] | None = None, **input: Any
    ) -> Request | None:
        """With a version, which a change that was made unseen makes stale."""
        return await self._ask(mutation, input, about)

    async def _ask(
        self, name: str, given: dict[str, Any], about: dict[str, Any] | None = None
    ) -> Request | None:
        """The answer, which it is asked for until there is one, at one server or another."""
        variables = given if name == "bed" else {"input": given}
        for pause in _PAUSES_S:
            number = self.chance.randrange(len(self.here.servers))
            request = self.history.begin(
                f"{self.name}.{next(self._numbers)}", number, name, {**given, **(about or {})}
            )
            await send(self._http, self.here.servers[number].url, self.token, request, variables)
            if request.outcome not in (Outcome.NOT_DONE, Outcome.UNKNOWN):
                return request
            await asyncio.sleep(pause * self.chance.uniform(0.5, 1))
        return None


class Probe:
    """Asks one server for something, and changes something, ten times a second, whatever became of the last time."""

    INTERVAL_S = 0.1
    MOST_AT_ONCE = 60

    def __init__(self, here: Deployment, history: History, number: int) -> None:
        self.here, self.history, self.number = here, history, number
        self._good: dict[str, list[tuple[float, float]]] = {"read": [], "change": []}
        self._numbers = itertools.count()

    async def work(self, stopped: asyncio.Event) -> None:
        """Goes on until it is told to stop."""
        async with httpx.AsyncClient(timeout=PATIENCE_S) as http, asyncio.TaskGroup() as group:
            under_way: set[asyncio.Task[None]] = set()
            while not stopped.is_set():
                if len(under_way) < self.MOST_AT_ONCE:
                    for kind in self._read, self._change:
                        task = group.create_task(kind(http))
                        under_way.add(task)
                        task.add_done_callback(under_way.discard)
                await asyncio.sleep(self.INTERVAL_S)

    async def _read(self, http: httpx.AsyncClient) -> None:
        place = self.here.places[0]
        await self._once(http, "read", "bed", {"id": place.probes[self.number]})

    async def _change(self, http: httpx.AsyncClient) -> None:
        number = next(self._numbers)
        place = self.here.places[number % len(self.here.places)]
        state = ("CLEANING", "IN_SERVICE")[number // 2 % 2]
        input = {"id": place.probes[self.number], "state": state}
        await self._once(http, "change", "bedSetServiceState", input)

    async def _once(self, http: httpx.AsyncClient, kind: str, name: str, input: dict[str, Any]) -> None:
        request = self.history.begin(f"probe{self.number}.{next(self._numbers)}", self.number, name, input)
        variables = input if name == "bed" else {"input": input}
        await send(http, self.here.servers[self.number].url, self.here.tokens[0], request, variables)
        if request.outcome is Outcome.DONE:
            self._good[kind].append((request.began, request.ended))

    def recovered_after(self, instant: float) -> float | None:
        """Seconds from the instant to the first good answer of either kind to what was asked since; None: not yet."""
        firsts = [
            min((ended for began, ended in good if began >= instant), default=None)
            for good in self._good.values()
        ]
        return None if None in firsts else max(first for first in firsts if first is not None) - instant
