"""What a document costs that was never seen before: parsing, validation and planning."""

from __future__ import annotations

from statistics import median
from time import perf_counter

from benchmarks.operations import TEXTS, variables
from ekoyka.api.context import shape_of
from ekoyka.api.schema import build_schema
from ekoyka.graph.plan import Planner
from ekoyka.identity.actors import Actor


def unseen_board_s(times: int = 200) -> float:
    """The median of seconds for the board under ever new names."""
    planner = Planner(build_schema()._schema)
    actor = shape_of(Actor(account_id=1, auth_version=1, doctor_of=frozenset({1})))
    took = []
    for number in range(times):
        text = TEXTS["board"].replace("Board", f"Board{number}")
        started = perf_counter()
        document = planner.document(text)
        assert not document.errors
        planner.plan(document, None, variables("board", number), actor)
        took.append(perf_counter() - started)
    return median(took)
