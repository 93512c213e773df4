"""The checker itself, on histories made by hand: those that can have happened, and those that cannot."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.chaos.checker import Verdict, linearizable, settled
from tests.chaos.history import Outcome, Request
from tests.chaos.linear import NEVER, Operation, State, explain
from tests.chaos.models import CHANGES, Step, ward

_numbers = itertools.count()


def sent(field: str, began: float, ended: float, answer: Mapping[str, Any], **input: Any) -> Request:
    """A request that was done, and what its client was told."""
    return Request(f"r{next(_numbers)}", 0, field, input, began, ended, Outcome.DONE, "", dict(answer))


def check_in(
    began: float, ended: float, stay: str, bed: str = "b", patient: str = "p", **more: Any
) -> Request:
    return sent("stayCheckIn", began, ended, {"id": stay}, patientId=patient, bedId=bed, **more)


def transfer(began: float, ended: float, stay: str, version: int, bed: str) -> Request:
    return sent("stayTransfer", began, ended, {"id": stay}, id=stay, version=version, bedId=bed)


def check_out(began: float, ended: float, stay: str, version: int) -> Request:
    return sent("stayCheckOut", began, ended, {"id": stay}, id=stay, version=version)


def reserve(began: float, ended: float, reservation: str, until: float, **more: Any) -> Request:
    ends = datetime.fromtimestamp(until, UTC).isoformat()
    return sent("bedReserve", began, ended, {"id": reservation}, bedId="b", until=ends, **more)


def refused(request: Request, code: str, **answer: Any) -> Request:
    request.outcome, request.code, request.answer = Outcome.REFUSED, code, {"code": code, **answer}
    return request


def unanswered(request: Request) -> Request:
    request.outcome, request.answer = Outcome.UNKNOWN, {}
    return request


def look(
    began: float, ended: float, status: str, stay: str = "s", version: int = 1, bed: str = "b"
) -> Request:
    assignment = {"stay": {"id": stay, "version": version}} if status == "OCCUPIED" else None
    return sent("bed", began, ended, {"status": status, "currentAssignment": assignment}, id=bed)


def problems(requests: Sequence[Request], also: Mapping[str, str] | None = None) -> list[str]:
    """What is wrong with a history; ``also`` are the unanswered requests that the database says were done."""
    made = {
        item.id: item.answer["id"]
        for item in requests
        if item.outcome is Outcome.DONE and item.field in CHANGES
    }
    verdict = Verdict()
    linearizable(ward(requests, {**made, **(also or {})}), verdict)
    return verdict.problems


SENSIBLE = {
    "one thing after the other": lambda: [
        look(0, 1, "FREE"),
        check_in(2, 3, "s"),
        look(4, 5, "OCCUPIED"),
        transfer(6, 7, "s", 1, "c"),
        look(8, 9, "FREE"),
        look(8, 9, "OCCUPIED", version=2, bed="c"),
        check_out(10, 11, "s", 2),
        look(12, 13, "FREE", bed="c"),
        check_in(14, 15, "t"),
    ],
    "of two at once for one bed, the one who is refused is told first": lambda: [
        check_in(0, 9, "s"),
        refused(check_in(1, 2, "", patient="q"), "BED_OCCUPIED"),
    ],
    "who looks meanwhile sees the one or the other": lambda: [
        check_in(0, 9, "s"),
        look(1, 2, "FREE"),
        look(3, 4, "OCCUPIED"),
        look(5, 8, "OCCUPIED"),
    ],
    "a look that lasts long sees what was long before it ended": lambda: [
        look(0, 9, "FREE"),
        check_in(1, 2, "s"),
        look(3, 4, "OCCUPIED"),
        check_out(10, 11, "s", 1),
    ],
    "of two who move a patient from one version, one is too late": lambda: [
        check_in(0, 1, "s"),
        transfer(2, 5, "s", 1, "c"),
        refused(transfer(2, 4, "s", 1, "d"), "VERSION_CONFLICT", currentVersion=2),
    ],
    "a reservation is in force until its time has come": lambda: [
        reserve(0, 1, "v", until=10),
        refused(check_in(2, 3, ""), "BED_RESERVED"),
        look(4, 5, "RESERVED"),
        check_in(9.99, 10.2, "s"),
        look(11, 12, "OCCUPIED"),
    ],
    "a reservation for the patient lets them in, and is over": lambda: [
        reserve(0, 1, "v", until=10, patientId="p"),
        check_in(2, 3, "s"),
        check_out(4, 5, "s", 1),
        look(6, 7, "FREE"),
    ],
}

ABSURD = {
    "a lost check-in": lambda: [check_in(0, 1, "s"), look(2, 3, "FREE")],
    "a lost check-out": lambda: [
        check_in(0, 1, "s"),
        check_out(2, 3, "s", 1),
        look(4, 5, "OCCUPIED", version=2),
    ],
    "a lost transfer": lambda: [check_in(0, 1, "s"), transfer(2, 3, "s", 1, "c"), look(4, 5, "OCCUPIED")],
    "a transfer of which one half is lost": lambda: [
        check_in(0, 1, "s"),
        transfer(2, 3, "s", 1, "c"),
        look(4, 5, "FREE", bed="c"),
    ],
    "two patients in one bed": lambda: [check_in(0, 5, "s"), check_in(1, 4, "t", patient="q")],
    "one patient in two beds": lambda: [check_in(0, 5, "s"), check_in(1, 4, "t", bed="c")],
    "two transfers from one version": lambda: [
        check_in(0, 1, "s"),
        transfer(2, 5, "s", 1, "c"),
        transfer(2, 5, "s", 1, "d"),
    ],
    "a stale look": lambda: [check_in(0, 9, "s"), look(1, 2, "OCCUPIED"), look(3, 4, "FREE")],
    "a stale version": lambda: [
        check_in(0, 1, "s"),
        transfer(2, 3, "s", 1, "c"),
        refused(transfer(4, 5, "s", 2, "d"), "VERSION_CONFLICT", currentVersion=1),
    ],
    "a refusal without need": lambda: [look(0, 1, "FREE"), refused(check_in(2, 3, ""), "BED_OCCUPIED")],
    "a refusal of what is current": lambda: [
        check_in(0, 1, "s"),
        refused(check_out(2, 3, "s", 1), "VERSION_CONFLICT", currentVersion=1),
    ],
    "a refusal that nobody can explain": lambda: [refused(check_in(2, 3, ""), "NOT_FOUND")],
    "a bed that is given away though it is kept": lambda: [reserve(0, 1, "v", until=10), check_in(2, 3, "s")],
    "a reservation that does not lapse": lambda: [reserve(0, 1, "v", until=10), look(11, 12, "RESERVED")],
    "somebody is seen before they are checked in": lambda: [look(0, 1, "OCCUPIED"), check_in(2, 3, "s")],
}


@pytest.mark.parametrize("name", SENSIBLE)
def test_what_can_have_happened_is_believed(name: str) -> None:
    assert problems(SENSIBLE[name]()) == []


@pytest.mark.parametrize("name", ABSURD)
def test_what_cannot_have_happened_is_not(name: str) -> None:
    assert problems(ABSURD[name]()) != []


def test_what_was_not_answered_may_have_been_done_at_any_time_from_then_on() -> None:
    lost = unanswered(check_in(1, 2, "s"))

    assert problems([lost, look(3, 4, "FREE"), look(5, 6, "OCCUPIED")], {lost.id: "s"}) == []
    assert problems([look(0, 0.5, "OCCUPIED"), lost], {lost.id: "s"}) != []


def test_what_was_not_answered_and_never_done_leaves_nothing_behind() -> None:
    lost = unanswered(check_in(1, 2, "s"))

    assert problems([lost, look(3, 4, "FREE")]) == []
    assert problems([lost, look(3, 4, "OCCUPIED")]) != []


def test_the_answer_under_the_same_key_says_that_it_was_done_by_then() -> None:
    lost = unanswered(check_in(1, 2, "s", idempotencyKey="k"))
    again = check_in(3, 4, "s", idempotencyKey="k")
    made = {lost.id: "s"}

    def found(*more: Request) -> list[str]:
        verdict = Verdict()
        linearizable(ward([lost, again, *more], made), verdict)
        return verdict.problems

    assert found(look(5, 6, "OCCUPIED")) == []
    assert found(look(5, 6, "FREE")) != []


def the_log(*requests: Request) -> list[tuple[str, str, str]]:
    return [(item.id, CHANGES[item.field], "s") for item in requests]


def judged(requests: Sequence[Request], logged: Sequence[tuple[str, str, str]]) -> list[str]:
    verdict = Verdict()
    settled(requests, logged, verdict)
    return verdict.problems


def test_what_was_acknowledged_must_stand_in_the_access_log_once() -> None:
    done = check_in(0, 1, "s")

    assert judged([done], the_log(done)) == []
    assert "LOST" in judged([done], [])[0]
    assert "done twice" in judged([done], the_log(done, done))[0]
    assert "by no request" in judged([], the_log(done))[0]


def test_what_was_refused_must_not_stand_there_and_what_was_not_answered_may() -> None:
    no = refused(check_in(0, 1, "s"), "BED_OCCUPIED")
    down = check_in(0, 1, "s")
    down.outcome, down.code = Outcome.NOT_DONE, "SERVICE_UNAVAILABLE"
    lost = unanswered(check_in(0, 1, "s"))

    assert judged([no, down, lost], the_log(lost)) == []
    assert "yet done" in judged([no], the_log(no))[0]
    assert "yet done" in judged([down], the_log(down))[0]


def test_one_key_makes_one_thing() -> None:
    first = unanswered(check_in(0, 1, "s", idempotencyKey="k"))
    again = check_in(2, 3, "s", idempotencyKey="k")

    assert judged([first, again], the_log(first)) == []
    assert judged([first, again], [*the_log(first), (again.id, "stay_check_in", "t")]) != []


def _explained_by_trying_all(operations: Sequence[Operation], initial: State) -> bool:
    """Whether any order of any of those that are uncertain, with all the others, explains everything."""
    certain = [item for item in operations if item.certain]
    open_ = [item for item in operations if not item.certain]
    for count in range(len(open_) + 1):
        for chosen in itertools.combinations(open_, count):
            for order in itertools.permutations([*certain, *chosen]):
                if any(later.ended < earlier.began for earlier, later in itertools.combinations(order, 2)):
                    continue
                state: State | None = initial
                for item in order:
                    state = item.step(state) if state is not None else None
                if state is not None:
                    return True
    return False


def _swap(old: int, new: int) -> Step:
    return lambda state: (new,) if state == (old,) else None


def test_the_search_finds_what_trying_all_orders_finds() -> None:
    chance = random.Random(20)  # noqa: S311 -- repeatable, not secret
    found = {True: 0, False: 0}
    for _ in range(600):
        operations = []
        for number in range(chance.randint(3, 6)):
            began = chance.randint(0, 8)
            ended: float = began + chance.randint(0, 4)
            old, new = chance.randrange(3), chance.randrange(3)
            kind = chance.random()
            if kind < 0.4:
                operations.append(Operation(f"see {number}", began, ended, _swap(old, old), observes=True))
                continue
            if kind > 0.75:
                ended = NEVER
            operations.append(Operation(f"swap {number}", began, ended, _swap(old, new), certain=kind < 0.85))
        expected = _explained_by_trying_all(operations, (0,))
        assert (explain(operations, (0,)) is None) is expected, operations
        found[expected] += 1

    assert min(found.values()) > 50
