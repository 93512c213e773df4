"""The judgement: what clients were told, against what is in the database, and against every order of events."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ekoyka.database import Database
from ekoyka.graph.ids import encode
from tests.chaos.history import Outcome, Request
from tests.chaos.linear import Undecided, explain
from tests.chaos.models import CHANGES, Ward, ward
from tests.invariants import broken_invariants

# What the feed says of a change, by mutation.
_TOLD = {
    "stayCheckIn": ("CHECKED_IN",),
    "stayTransfer": ("TRANSFERRED_OUT", "TRANSFERRED_IN"),
    "stayCheckOut": ("CHECKED_OUT",),
    "bedReserve": ("RESERVED",),
    "reservationRelease": ("RESERVATION_RELEASED",),
}


@dataclass
class Verdict:
    """What was looked at, and what is wrong; all is well where nothing is."""

    problems: list[str] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)

    def demand(self, so: bool, otherwise: str) -> None:
        """It is so, or it is a problem."""
        if not so:
            self.problems.append(otherwise)


def linearizable(found: Ward, verdict: Verdict) -> None:
    """Every bed's, patient's and stay's history has an order that explains all answers."""
    verdict.problems += found.contradictions
    for (kind, key), operations in found.histories.items():
        verdict.counted[f"{kind.lower()}s"] += 1
        verdict.counted[f"steps of {kind.lower()}s"] += len(operations)
        try:
            impossible = explain(operations, found.initial(kind))
        except Undecided:
            verdict.problems.append(f"{kind} {key}: too many orders to decide")
            continue
        if impossible is not None:
            verdict.problems.append(
                f"{kind} {key}: no order explains {impossible.operation.name}; it was {impossible.states}"
            )


def settled(
    requests: Iterable[Request], logged: Sequence[tuple[str, str, str]], verdict: Verdict
) -> dict[str, str]:
    """Which requests changed something, and which object: by the access log (request, action, object).

    What was acknowledged must be there, once; what was refused must not; nobody else may be.
    """
    made: dict[str, str] = {}
    extra: Counter[tuple[str, str]] = Counter()
    asked = {item.id: item for item in requests}
    for request_id, action, made_object in logged:
        request = asked.get(request_id)
        if request is None:
            verdict.problems.append(f"{action} {made_object} was made by no request ({request_id})")
        elif action == CHANGES[request.field]:
            verdict.demand(request_id not in made, f"{request.field} {request_id} was done twice")
            made[request_id] = made_object
        else:
            # A check-out may issue a certificate.
            extra[request_id, action] += 1
            verdict.demand(
                (request.field, action) == ("stayCheckOut", "certificate_issue"),
                f"{request.field} {request_id} did {action}",
            )
    by_key: dict[tuple[str, str], set[str]] = defaultdict(set)
    for request_id, made_object in made.items():
        if asked[request_id].key:
            by_key[asked[request_id].field, asked[request_id].key or ""].add(made_object)
    for request in asked.values():
        if request.field not in CHANGES:
            continue
        name = f"{request.field} {request.id}"
        if request.outcome is Outcome.DONE:
            verdict.counted["acknowledged changes"] += 1
            there = {made[request.id]} if request.id in made else by_key[request.field, request.key or ""]
            verdict.demand(
                there == {request.answer["id"]}, f"LOST: {name} was acknowledged, the database has {there}"
            )
            if request.field == "stayCheckOut":
                wanted = int(bool(request.input.get("certificate")))
                verdict.demand(
                    extra[request.id, "certificate_issue"] == wanted, f"{name}: its certificate is missing"
                )
        elif request.outcome is Outcome.UNKNOWN:
            verdict.counted["answers that were lost"] += 1
            verdict.counted["changes whose answer was lost"] += request.id in made
        else:
            verdict.counted["changes refused or not begun"] += 1
            verdict.demand(
                request.id not in made, f"{name} was answered {request.outcome} {request.code}, yet done"
            )
    for place, objects in by_key.items():
        verdict.demand(len(objects) == 1, f"the key of {place} made {objects}")
    return made


async def judge(requests: Sequence[Request], database: Database, beds: Iterable[str]) -> Verdict:
    """All that the issue asks of a run; ``beds`` are those that the load changed, and nobody else."""
    verdict = Verdict()
    for name in await broken_invariants(database):
        verdict.problems.append(f"an invariant does not hold: {name}")
    logged = [
        (row["request_id"] or "", row["action"], encode(row["object_type"], row["object_id"]))
        for row in await database.fetch(
            "SELECT request_id, action, object_type, object_id FROM access_entry "
            "WHERE action = ANY($1::text[]) ORDER BY id",
            list(CHANGES.values()),
        )
    ]
    made = settled(requests, logged, verdict)
    found = ward(requests, made)
    linearizable(found, verdict)
    effects = [item for item in requests if item.id in made and item.field in CHANGES]
    await _stays(effects, made, found, database, verdict)
    loaded = set(beds)
    await _reservations(effects, made, database, loaded, verdict)
    await _told(effects, found, database, loaded, verdict)
    await _certificates(requests, logged, database, verdict)
    await _keys(effects, made, database, verdict)
    for request in requests:
        if request.outcome is Outcome.UNNAMED:
            verdict.problems.append(f"{request.field} {request.id} had no named answer: {request.code}")
    return verdict


async def _stays(
    effects: list[Request], made: dict[str, str], found: Ward, database: Database, verdict: Verdict
) -> None:
    """Each stay is as its acknowledged changes left it: version, beds in their order, how it ended."""
    expected: dict[str, dict[str, Any]] = {}
    for item in effects:
        if item.field == "stayCheckIn":
            patient = item.input["patientId"]
            expected[made[item.id]] = {"patient": patient, "version": 1, "outcome": None}
    for item in effects:
        if item.field in ("stayTransfer", "stayCheckOut") and made[item.id] in expected:
            expected[made[item.id]]["version"] += 1
            if item.field == "stayCheckOut":
                expected[made[item.id]]["outcome"] = item.input["outcome"]
    for stay, state in expected.items():
        steps = sorted(version for key, version in found.beds if key == stay)
        state["beds"] = [found.beds[stay, version] for version in steps]
    rows = {
        encode("Stay", row["id"]): {
            "patient": encode("Patient", row["patient_id"]),
            "version": row["version"],
            "outcome": row["outcome"],
            "beds": [encode("Bed", bed) for bed in row["beds"]],
        }
        for row in await database.fetch(
            "SELECT s.id, s.patient_id, s.version, s.outcome, ARRAY(SELECT a.bed_id FROM bed_assignment a "
            "WHERE a.stay_id = s.id ORDER BY a.started_at, a.id) AS beds FROM stay s"
        )
    }
    verdict.counted["stays in the database"] = len(rows)
    _compare("stay", expected, rows, verdict)


async def _reservations(
    effects: list[Request], made: dict[str, str], database: Database, beds: set[str], verdict: Verdict
) -> None:
    """Each reservation is there, and those that were given free are over so; none is open past its time."""
    released = {made[item.id] for item in effects if item.field == "reservationRelease"}
    expected = {
        made[item.id]: (item.input["bedId"], item.input.get("patientId"), made[item.id] in released)
        for item in effects
        if item.field == "bedReserve"
    }
    found = await database.fetch(
        "SELECT id, bed_id, patient_id, outcome, ended_at, until < clock_timestamp() - interval '1 s' AS late "
        "FROM reservation"
    )
    rows = {
        encode("Reservation", row["id"]): (
            encode("Bed", row["bed_id"]),
            encode("Patient", row["patient_id"]) if row["patient_id"] else None,
            row["outcome"] == "RELEASED",
        )
        for row in found
        if encode("Bed", row["bed_id"]) in beds
    }
    _compare("reservation", expected, rows, verdict)
    late = sum(row["outcome"] is None and row["late"] for row in found)
    verdict.demand(late == 0, f"{late} reservations are past their time and not ended")
    verdict.counted["reservations that lapsed"] = sum(row["outcome"] == "LAPSED" for row in found)


async def _told(
    effects: list[Request], found: Ward, database: Database, beds: set[str], verdict: Verdict
) -> None:
    """The feed holds one event for every change of a bed, and none for what was not done."""
    expected: Counter[tuple[str, str]] = Counter()
    for item in effects:
        for change in _TOLD.get(item.field, ()):
            bed = item.input.get("bedId")
            if change in ("TRANSFERRED_OUT", "CHECKED_OUT"):
                bed = found.beds.get((item.input["id"], item.input["version"]))
            expected[str(bed), change] += 1
    for row in await database.fetch("SELECT bed_id FROM reservation WHERE outcome = 'LAPSED'"):
        expected[encode("Bed", row["bed_id"]), "RESERVATION_LAPSED"] += 1
    told: Counter[tuple[str, str]] = Counter()
    for row in await database.fetch(
        "SELECT payload->>'bed' AS bed, payload->>'change' AS change FROM feed_event WHERE topic LIKE 'beds:%'"
    ):
        told[encode("Bed", int(row["bed"])), row["change"]] += 1
    # Whosever bed it is, what lapses is told once; of the probes' beds the rest is nobody's business here.
    told = Counter(
        {
            (bed, change): count
            for (bed, change), count in told.items()
            if bed in beds or change == "RESERVATION_LAPSED"
        }
    )
    verdict.counted["events of the feed"] = told.total()
    for place in expected | told:
        verdict.demand(
            expected[place] == told[place],
            f"{place} happened {expected[place]} times, the feed tells {told[place]}",
        )


async def _certificates(
    requests: Sequence[Request], logged: Iterable[tuple[str, str, str]], database: Database, verdict: Verdict
) -> None:
    """Numbers have no gaps, none is given twice, and a later certificate has a higher one."""
    issued = Counter(made for _, action, made in logged if action == "certificate_issue")
    rows = await database.fetch(
        "SELECT c.id, c.dispensary_id, c.year, c.number, n.last_number FROM certificate c "
        "JOIN certificate_counter n USING (dispensary_id, year)"
    )
    verdict.counted["certificates"] = len(rows)
    verdict.demand(
        issued == Counter(encode("Certificate", row["id"]) for row in rows),
        "the register and the access log differ about certificates",
    )
    numbers: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for row in rows:
        numbers[row["dispensary_id"], row["year"], row["last_number"]].append(row["number"])
    for (dispensary, year, last), given in numbers.items():
        verdict.demand(
            sorted(given) == list(range(1, last + 1)),
            f"numbers of {year} in {dispensary} have gaps: {sorted(given)}",
        )
    numbered = {encode("Certificate", row["id"]): (row["dispensary_id"], row["number"]) for row in rows}
    asked: dict[str, float] = {}
    answered: dict[str, tuple[float, tuple[int, int]]] = {}
    for item in requests:
        if item.field == "certificateIssue":
            key = item.key or ""
            asked[key] = min(item.began, asked.get(key, item.began))
            if item.outcome is Outcome.DONE and item.answer["id"] in numbered:
                ended = min(item.ended, answered[key][0] if key in answered else item.ended)
                answered[key] = ended, numbered[item.answer["id"]]
    for before, (ended, first) in answered.items():
        for after, (_, second) in answered.items():
            if first[0] == second[0] and ended < asked[after]:
                verdict.demand(
                    first[1] < second[1], f"certificate {after} has a lower number than {before} before it"
                )


async def _keys(effects: list[Request], made: dict[str, str], database: Database, verdict: Verdict) -> None:
    """What stands under each idempotency key is what the request with it made."""
    types = {"stayCheckIn": "Stay", "bedReserve": "Reservation", "certificateIssue": "Certificate"}
    kept = {
        (row["mutation"], row["key"]): encode(types[row["mutation"]], row["result_id"] or 0)
        for row in await database.fetch(
            "SELECT mutation, key, result_id FROM idempotency_key WHERE mutation = ANY($1::text[])",
            list(types),
        )
    }
    expected = {(item.field, item.key or ""): made[item.id] for item in effects if item.field in types}
    _compare("key", expected, kept, verdict)


def _compare(kind: str, expected: dict[Any, Any], found: dict[Any, Any], verdict: Verdict) -> None:
    for key in expected.keys() | found.keys():
        verdict.demand(
            expected.get(key) == found.get(key),
            f"{kind} {key}: by the answers {expected.get(key)}, in the database {found.get(key)}",
        )
