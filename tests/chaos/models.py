"""A ward as its clients may see it: what each request does to a bed, a patient, a stay, or sees of them.

A bed's state is who lies in it, the reservation in force, and whom that is for; a patient's, the stay they are in;
a stay's, its version. Each step says what EKoyka promises, and nothing of how it keeps it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.chaos.history import Outcome, Request
from tests.chaos.linear import NEVER, Operation, State

Step = Callable[[State], State | None]

EMPTY_BED: State = (None, None, None)
NOWHERE: State = (None,)
UNMADE: State = (0,)
_INITIAL = {"Bed": EMPTY_BED, "Patient": NOWHERE, "Stay": UNMADE}

CHANGES = {
    "stayCheckIn": "stay_check_in",
    "stayTransfer": "stay_transfer",
    "stayCheckOut": "stay_check_out",
    "bedReserve": "bed_reserve",
    "reservationRelease": "reservation_release",
    "certificateIssue": "certificate_issue",
}
"""Mutations that the access log tells of, and as what."""

# PostgreSQL's clock says when a reservation lapses; an answer may be on its way from one side of it to the other.
_LAPSE_S = 0.005


# Beds


def admitted(stay: str, patient: str, named: str | None) -> Step:
    """Somebody is put into the bed, which must be empty and kept for them or for nobody."""

    def step(state: State) -> State | None:
        lies, kept, kept_for = state
        if lies is not None or not (
            kept is None or kept_for == patient or (kept_for is None and kept == named)
        ):
            return None
        return stay, None, None

    return step


def left(stay: str) -> Step:
    """Who lay in the bed lies there no more."""
    return lambda state: (None, *state[1:]) if state[0] == stay else None


def reserved(reservation: str, patient: str | None) -> Step:
    """The empty bed is kept."""
    return lambda state: (None, reservation, patient) if state == EMPTY_BED else None


def released(reservation: str) -> Step:
    """The bed is kept no more."""
    return lambda state: (state[0], None, None) if state[1] == reservation else None


def lapsed(reservation: str) -> Step:
    """The reservation is over now, if it was not before."""
    return lambda state: (state[0], None, None) if state[1] == reservation else state


def occupied(state: State) -> State | None:
    """Somebody lies in the bed."""
    return state if state[0] is not None else None


def kept_for_others(patient: str | None, named: str | None) -> Step:
    """The bed is empty, and kept for somebody else; without a patient, for anybody."""

    def step(state: State) -> State | None:
        lies, kept, kept_for = state
        mine = patient is not None and (kept_for == patient or (kept_for is None and kept == named))
        return state if lies is None and kept is not None and not mine else None

    return step


def not_kept_by(reservation: str) -> Step:
    """The reservation, which somebody was told of before, is in force no more."""
    return lambda state: state if state[1] != reservation else None


def looks(stay: str | None, status: str) -> Step:
    """The bed is as it was read."""

    def step(state: State) -> State | None:
        lies, kept, _ = state
        expected = "OCCUPIED" if lies is not None else "RESERVED" if kept is not None else "FREE"
        return state if (lies, expected) == (stay, status) else None

    return step


# Patients and stays


def moved_in(stay: str) -> Step:
    """The patient, who was nowhere, is in the stay."""
    return lambda state: (stay,) if state == NOWHERE else None


def moved_out(stay: str) -> Step:
    """The patient is out of the stay."""
    return lambda state: NOWHERE if state == (stay,) else None


def nowhere(state: State) -> State | None:
    """The patient is in no stay."""
    return state if state == NOWHERE else None


def somewhere(state: State) -> State | None:
    """The patient is in some stay."""
    return state if state != NOWHERE else None


def advanced(version: int) -> Step:
    """The stay, which was at this version, is at the next."""
    return lambda state: (version + 1,) if state == (version,) else None


def at_version(version: int) -> Step:
    """The stay is at this version."""
    return lambda state: state if state == (version,) else None


@dataclass
class Ward:
    """The histories of all beds, patients and stays; and what does not fit whatever their order was."""

    histories: dict[tuple[str, str], list[Operation]] = field(default_factory=lambda: defaultdict(list))
    contradictions: list[str] = field(default_factory=list)
    # The bed that a stay is in as of a version, and its patient.
    beds: dict[tuple[str, int], str] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, key: str, request: Request, step: Step, *, until: float | None = None) -> None:
        """The request did this to the object; without ``until``, it saw this."""
        self.histories[kind, key].append(
            Operation(
                f"{request.field} {request.id}",
                request.began,
                request.ended if until is None else until,
                step,
                observes=until is None,
            )
        )

    def initial(self, kind: str) -> State:
        """How objects of the kind begin."""
        return _INITIAL[kind]


def ward(requests: Iterable[Request], made: Mapping[str, str]) -> Ward:
    """What the requests did to each object and saw of it.

    ``made`` tells, by their ids, of those that changed something, and which object they made or changed: for those
    that were answered so, and for those of which only the database knows.
    """
    found = Ward()
    asked = sorted(requests, key=lambda item: item.began)
    answered = _answered_again(asked, made)
    for request in asked:
        if request.id in made and request.field in CHANGES:
            ended = request.ended if request.outcome is Outcome.DONE else NEVER
            if request.key is not None:
                ended = min(ended, answered.get((request.field, request.key), NEVER))
            _note_beds(found, request, made[request.id])
            _EFFECTS.get(request.field, _nothing)(found, request, made[request.id], ended)
    for request in asked:
        if request.outcome is Outcome.REFUSED:
            _refused(found, request)
        elif request.field == "bed" and request.outcome is Outcome.DONE:
            _looked(found, request)
    return found


def _answered_again(requests: list[Request], made: Mapping[str, str]) -> dict[tuple[str, str], float]:
    """When a key's change had certainly been made: the first answer that says so, by mutation and key."""
    answered: dict[tuple[str, str], float] = {}
    for item in requests:
        if item.outcome is Outcome.DONE and item.key is not None:
            place = (item.field, item.key)
            answered[place] = min(item.ended, answered.get(place, NEVER))
    return answered


def _note_beds(found: Ward, request: Request, made: str) -> None:
    if request.field == "stayCheckIn":
        found.beds[made, 1] = request.input["bedId"]
        found.patients[made] = request.input["patientId"]
    elif request.field == "stayTransfer":
        found.beds[made, request.input["version"] + 1] = request.input["bedId"]


def _from_bed(found: Ward, request: Request) -> str | None:
    """The bed that the stay leaves: the one it was in as of the version that the client had read."""
    place = request.input["id"], request.input["version"]
    if place not in found.beds:
        found.contradictions.append(
            f"{request.field} {request.id} was done to a stay that never was in any bed"
        )
    return found.beds.get(place)


def _check_in(found: Ward, request: Request, stay: str, ended: float) -> None:
    given = request.input
    step = admitted(stay, given["patientId"], given.get("reservationId"))
    found.add("Bed", given["bedId"], request, step, until=ended)
    found.add("Patient", given["patientId"], request, moved_in(stay), until=ended)
    found.add("Stay", stay, request, advanced(0), until=ended)


def _transfer(found: Ward, request: Request, stay: str, ended: float) -> None:
    given, patient = request.input, found.patients.get(stay, "")
    bed = _from_bed(found, request)
    if bed is not None:
        found.add("Bed", bed, request, left(stay), until=ended)
    step = admitted(stay, patient, given.get("reservationId"))
    found.add("Bed", given["bedId"], request, step, until=ended)
    found.add("Stay", stay, request, advanced(given["version"]), until=ended)


def _check_out(found: Ward, request: Request, stay: str, ended: float) -> None:
    bed, patient = _from_bed(found, request), found.patients.get(stay)
    if bed is not None and patient is not None:
        found.add("Bed", bed, request, left(stay), until=ended)
        found.add("Patient", patient, request, moved_out(stay), until=ended)
    found.add("Stay", stay, request, advanced(request.input["version"]), until=ended)


def _reserve(found: Ward, request: Request, reservation: str, ended: float) -> None:
    bed = request.input["bedId"]
    found.add("Bed", bed, request, reserved(reservation, request.input.get("patientId")), until=ended)
    ends = _until(request)
    found.histories["Bed", bed].append(
        Operation(f"lapse of {request.id}", ends - _LAPSE_S, ends + _LAPSE_S, lapsed(reservation))
    )


def _until(request: Request) -> float:
    return datetime.fromisoformat(request.input["until"]).timestamp()


def _release(found: Ward, request: Request, reservation: str, ended: float) -> None:
    found.add("Bed", request.input["bedId"], request, released(reservation), until=ended)


def _nothing(found: Ward, request: Request, made: str, ended: float) -> None:
    """A certificate changes no bed."""


_EFFECTS: dict[str, Callable[[Ward, Request, str, float], None]] = {
    "stayCheckIn": _check_in,
    "stayTransfer": _transfer,
    "stayCheckOut": _check_out,
    "bedReserve": _reserve,
    "reservationRelease": _release,
}


def _refused(found: Ward, request: Request) -> None:
    """A refusal is a look at what it names, and at what would have been refused before."""
    given: dict[str, Any] = request.input
    bed, patient, stay = given.get("bedId"), given.get("patientId"), given.get("id")
    if request.code == "VERSION_CONFLICT" and stay:
        if request.answer["currentVersion"] == given["version"]:
            found.contradictions.append(
                f"{request.field} {request.id}: stale, though it is the current version"
            )
        found.add("Stay", stay, request, at_version(request.answer["currentVersion"]))
    elif request.code == "PATIENT_ALREADY_ADMITTED" and request.field == "stayCheckIn":
        found.add("Patient", given["patientId"], request, somewhere)
    elif request.code in ("BED_OCCUPIED", "BED_RESERVED") and bed:
        if request.field == "stayCheckIn":
            found.add("Patient", given["patientId"], request, nowhere)
        elif request.field == "stayTransfer" and stay:
            found.add("Stay", stay, request, at_version(given["version"]))
            patient = found.patients.get(stay)
        if request.code == "BED_OCCUPIED":
            found.add("Bed", bed, request, occupied)
        else:
            who = None if request.field == "bedReserve" else patient
            found.add("Bed", bed, request, kept_for_others(who, given.get("reservationId")))
    elif (
        request.code == "INVALID_INPUT" and request.field == "bedReserve" and _until(request) <= request.ended
    ):
        pass  # the time until which it was to be kept had come when the request arrived
    elif request.code == "RESERVATION_ENDED" and bed:
        found.add("Bed", bed, request, not_kept_by(given["id"]))
    else:
        found.contradictions.append(f"{request.field} {request.id} was refused without need: {request.code}")


def _looked(found: Ward, request: Request) -> None:
    bed, assignment = request.answer, request.answer["currentAssignment"]
    stay = assignment["stay"] if assignment else None
    found.add("Bed", request.input["id"], request, looks(stay and stay["id"], bed["status"]))
    if stay is not None:
        found.add("Stay", stay["id"], request, at_version(stay["version"]))
