"""One act: a deployment under load, one fault after the other, then the judgement."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from ekoyka.database import WARD_ROLE, Database
from ekoyka.graph.ids import decode
from ekoyka.settings import Settings
from tests.chaos.checker import Verdict, judge
from tests.chaos.deployment import SERVERS, Deployment, deployed
from tests.chaos.faults import Fault
from tests.chaos.history import History, Outcome, now, until
from tests.chaos.load import Doctor, Probe
from tests.chaos.subscribers import Subscriber

# The figure is 5 s; what takes longer than this is not waited for.
PATIENCE_S = 30.0
CALM_S = 2.0
# The servers' own work, too, goes on again by then.
LATEST_S = 5.0
# A download's address is good for 5 minutes; so many are fetched.
PAPERS_S = 280.0
MOST_PAPERS = 20
_OF_A_PROBE = (Outcome.DONE, Outcome.NOT_DONE, Outcome.UNKNOWN)


@dataclass(frozen=True)
class Recovery:
    """How long after a fault each server answered and changed again, and its subscribers heard of a change."""

    fault: str
    lasted_s: float
    answered_s: tuple[float, ...]
    heard_s: tuple[float, ...]

    @property
    def slowest_s(self) -> float:
        """Until everything was as before."""
        return max(*self.answered_s, *self.heard_s)


@dataclass
class Act:
    """What came of it."""

    verdict: Verdict
    history: History
    recoveries: list[Recovery] = field(default_factory=list)
    lasted_s: float = 0.0


async def act(
    folder: Path,
    disk: Path,
    faults: Iterable[Fault],
    *,
    seed: int,
    clients: int,
    say: Callable[[str], None],
) -> Act:
    """The faults happen in this order, under load; everything is judged when the load has ended."""
    chance = random.Random(seed)  # noqa: S311 -- repeatable, not secret
    history, probed, stopped = History(), History(), asyncio.Event()
    async with deployed(folder, disk) as here:
        doctors = [
            Doctor(
                here,
                history,
                f"d{number}",
                here.tokens[number % len(here.tokens)],
                random.Random(f"{seed} {number}"),  # noqa: S311
                stopped,
            )
            for number in range(clients)
        ]
        probes = [Probe(here, probed, number) for number in range(SERVERS)]
        subscribers = [
            Subscriber(here, number, place.dispensary, here.tokens[-1], random.Random(seed), roams)  # noqa: S311
            for number in range(SERVERS)
            for place in here.places
            for roams in (False, True)
        ]
        following = [asyncio.create_task(item.follow()) for item in subscribers]
        began = now()
        try:
            async with asyncio.TaskGroup() as group:
                for doctor in doctors:
                    group.create_task(doctor.work())
                for probe in probes:
                    group.create_task(probe.work(stopped))
                recoveries = []
                try:
                    await asyncio.sleep(CALM_S)
                    for item in faults:
                        recoveries.append(await _endured(here, item, chance, probes, subscribers))
                        say(_line(recoveries[-1]))
                        await asyncio.sleep(CALM_S)
                finally:
                    stopped.set()
            async with Database(here.postgres.url, Settings(), pooled=False, role=WARD_ROLE) as database:
                await _told_all(database, subscribers)
                await until(lambda: _nothing_is_late(database), LATEST_S)
                verdict = await judge(
                    history.requests, database, [bed for place in here.places for bed in place.beds]
                )
                await _judge_subscribers(database, subscribers, verdict)
                await _judge_papers(database, history, verdict)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
        _judge_logs(here, verdict)
        for request in probed.requests:
            if request.outcome not in _OF_A_PROBE:
                verdict.problems.append(
                    f"a probe, {request.id}, was answered {request.outcome} {request.code}"
                )
        return Act(verdict, history, recoveries, now() - began)


async def _endured(
    here: Deployment,
    fault: Fault,
    chance: random.Random,
    probes: Sequence[Probe],
    subscribers: Sequence[Subscriber],
) -> Recovery:
    """The fault has happened and is over; how long it took until each server served again."""
    began = now()
    await fault.do(here, chance)
    over = now()
    own = [
        [item for item in subscribers if item.number == number and not item.roams]
        for number in range(SERVERS)
    ]
    await until(
        lambda: (
            all(item.recovered_after(over) is not None for item in probes)
            and all(item.heard_after(over) is not None for items in own for item in items)
        ),
        PATIENCE_S,
    )
    answered = [item.recovered_after(over) for item in probes]
    heard = [[item.heard_after(over) for item in items] for items in own]
    return Recovery(
        fault.name,
        over - began,
        tuple(PATIENCE_S if value is None else value for value in answered),
        tuple(max(PATIENCE_S if value is None else value for value in values) for values in heard),
    )


def _line(item: Recovery) -> str:
    answered = ", ".join(f"{value:.2f}" for value in item.answered_s)
    heard = ", ".join(f"{value:.2f}" for value in item.heard_s)
    return f"{item.fault}: {item.lasted_s:.1f} s; answered after {answered} s, feed heard after {heard} s"


async def _told_all(database: Database, subscribers: Sequence[Subscriber]) -> None:
    """Everybody has been told of the last event, or never will be."""
    rows = await database.fetch("SELECT topic, last_cursor FROM feed_topic WHERE topic LIKE 'beds:%'")
    last = {row["topic"]: row["last_cursor"] for row in rows}
    await until(
        lambda: all(item.told and item.told[-1][0] == last[item.topic] for item in subscribers), PATIENCE_S
    )


async def _nothing_is_late(database: Database) -> bool:
    """Whether the servers have let lapse what had to."""
    late = "SELECT FROM reservation WHERE ended_at IS NULL AND until < clock_timestamp() - interval '1 s'"
    return not await database.fetch(late)


async def _judge_subscribers(database: Database, subscribers: Sequence[Subscriber], verdict: Verdict) -> None:
    """Each was told every event since it began, in order and once."""
    events: dict[str, list[tuple[int, str, str]]] = {}
    for row in await database.fetch(
        "SELECT topic, cursor, payload->>'change' AS change, payload->>'bed' AS bed FROM feed_event "
        "WHERE topic LIKE 'beds:%' ORDER BY topic, cursor"
    ):
        events.setdefault(row["topic"], []).append((row["cursor"], row["change"], row["bed"]))
    for number, item in enumerate(subscribers):
        verdict.counted["events told"] += len(item.told)
        verdict.counted["times that subscribers came back"] += item.came_back
        verdict.problems += [f"subscriber {number}: {what}" for what in item.wrong]
        if item.first is None:
            verdict.problems.append(f"subscriber {number} was never told anything")
            continue
        expected = [event for event in events[item.topic] if event[0] > item.first]
        if item.told != expected:
            missed = Counter(expected) - Counter(item.told)
            verdict.problems.append(
                f"subscriber {number} was told {len(item.told)} events of {len(expected)}, missed {missed.total()}"
            )


async def _judge_papers(database: Database, history: History, verdict: Verdict) -> None:
    """The last certificates can be fetched, also those whose paper was to be made while something broke."""
    issued = [item for item in history.requests if item.field == "certificateIssue"]
    done = [item for item in issued if item.outcome is Outcome.DONE and item.ended > now() - PAPERS_S]
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        for item in done[-MOST_PAPERS:]:
            paper = await http.get(item.answer["downloadUrl"])
            digest = await database.fetch_value(
                "SELECT sha256 FROM certificate WHERE id = $1", decode(item.answer["id"])[1]
            )
            verdict.counted["papers fetched"] += 1
            verdict.demand(
                paper.status_code == 200 and hashlib.sha256(paper.content).hexdigest() == digest,
                f"the paper of certificate {item.answer['number']} is not to be had ({paper.status_code})",
            )


def _judge_logs(here: Deployment, verdict: Verdict) -> None:
    """Neither server nor worker said that something failed which it did not expect."""
    logs = {f"server {number}": here.log(number) for number in range(SERVERS)}
    assert here.worker is not None
    verdict.demand(here.worker.returncode is None, "the worker ended")
    for name, log in {**logs, "the worker": here.folder / "worker.log"}.items():
        text = log.read_text(errors="replace")
        for word in "Traceback", '"operation_failed"', '"request_failed"', "never retrieved", "never awaited":
            count = text.count(word)
            verdict.demand(count == 0, f"{name} logged {word} {count} times")
