"""What must be reached: each a ratio of medians within one run, or a figure with a unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.changes import BARE, TOLD
from benchmarks.reads import Results
from benchmarks.subscribers import Delivery

FLOORS = ("floor: JSON", "floor: rows")
PEERS = ("PostGraphile", "Mercurius", "Apollo", "Strawberry")
OURS = "ekoyka"
WITHOUT_LOG, WITHOUT_WALL = "ekoyka without log", "ekoyka without wall"


@dataclass(frozen=True)
class Reach:
    """One line of the table: what was measured, what it had to be, whether it is."""

    measure: str
    figure: float | None
    bound: float
    at_least: bool
    unit: str = "times"

    @property
    def holds(self) -> bool | None:
        """Whether it is reached; None where it was not measured."""
        if self.figure is None:
            return None
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound

    def __str__(self) -> str:
        word = {True: "holds", False: "falls short", None: "not measured here"}[self.holds]
        figure = "-" if self.figure is None else f"{self.figure:.2f}"
        sign = "at least" if self.at_least else "at most"
        return f"{self.measure:<66}{figure:>9} {self.unit:<6} {sign:>8} {self.bound:g}   {word}"


def of_reads(results: Results) -> list[Reach]:
    """The reaches of reads, from the rates at concurrency 32 and the board's latency at 1."""

    def rate(name: str, read: str) -> float | None:
        figures = results.get((name, read, 32))
        return figures.rate if figures else None

    def over(read: str, others: tuple[str, ...]) -> float | None:
        known = [found for name in others if (found := rate(name, read)) is not None]
        ours = rate(OURS, read)
        return ours / max(known) if known and ours is not None else None

    def latency_over(name: tuple[str, ...]) -> float | None:
        known = [found.p50_s for item in name if (found := results.get((item, "board", 1)))]
        ours = results.get((OURS, "board", 1))
        return ours.p50_s / min(known) if known and ours else None

    wanted: list[tuple[str, tuple[str, ...], float]] = [
        ("board", ("PostGraphile",), 2.5),
        ("board", ("Mercurius",), 5),
        ("board", ("Strawberry",), 50),
        ("board", FLOORS, 0.8),
        ("list", ("PostGraphile",), 1),
        ("list", PEERS, 1),
        ("list", FLOORS, 0.95),
        ("point", ("PostGraphile",), 3),
        ("point", ("Mercurius",), 2),
        ("point", FLOORS, 0.7),
        ("history", ("PostGraphile",), 2.5),
        ("history", FLOORS, 0.7),
        ("search", PEERS, 1),
        ("discharged", PEERS, 1),
    ]
    names = {FLOORS: "the better floor", PEERS: "the best peer"}
    return [
        *(
            Reach(f"{read}: rate over {names.get(others, others[0])}'s", over(read, others), bound, True)
            for read, others, bound in wanted
        ),
        Reach("board at concurrency 1: p50 over the better floor's", latency_over(FLOORS), 1.2, False),
        Reach("board at concurrency 1: p50 over PostGraphile's", latency_over(("PostGraphile",)), 0.5, False),
    ]


def of_guards(results: Results) -> list[Reach]:
    """What the access log and row-level security take of a doctor's board, each beside a server without it."""
    ours = results[OURS, "board", 32].rate
    return [
        Reach(
            f"board of a doctor: rate over that without {name}",
            ours / results[other, "board", 32].rate,
            0.9,
            True,
        )
        for name, other in (("the access log", WITHOUT_LOG), ("row-level security", WITHOUT_WALL))
    ]


def of_memory(peaks: Mapping[str, int]) -> list[Reach]:
    """The reaches of memory, from the peaks in bytes by server."""
    ours, other = peaks.get(OURS), peaks.get("PostGraphile")
    return [
        Reach("peak memory of the process", ours / 2**20 if ours else None, 120, False, "MiB"),
        Reach("peak memory over PostGraphile's", ours / other if ours and other else None, 1 / 3, False),
    ]


def of_growth(small: Results, large: Results) -> list[Reach]:
    """The reaches at ten times the data: how many times longer a read takes."""
    found = []
    for read, bound in (("board", 1.15), ("point", 1.15), ("history", 1.15), ("list", 1.5)):
        before, after = small.get((OURS, read, 32)), large.get((f"{OURS} x10", read, 32))
        ratio = before.rate / after.rate if before and after else None
        found.append(Reach(f"{read} at ten times the data: time over that at once", ratio, bound, False))
    return found


def of_watching(delivery: Delivery, bare_bytes: float, our_bytes: float) -> list[Reach]:
    """The reaches of subscriptions, from the delivery to the most subscribers."""
    over_peer = delivery.ours_s / delivery.peer_s if delivery.peer_s else None
    many = f"{delivery.subscribers} subscribers, one change: last delivery over"
    above_kib = (our_bytes - bare_bytes) / 1024
    return [
        Reach(f"{many} ready frames'", delivery.ours_s / delivery.floor_s, 2, False),
        Reach(f"{many} graphql-ws's", over_peer, 1, False),
        Reach("memory of an idle subscriber above its WebSocket's", above_kib, 40, False, "KiB"),
    ]


def of_sign_ins(p99_s: float) -> list[Reach]:
    """The reach of what others notice of sign-ins."""
    return [Reach("p99 of other queries beside 100 sign-ins at once", p99_s * 1e3, 150, False, "ms")]


def of_changes(rates: Mapping[str, float]) -> list[Reach]:
    """The reaches of check-ins, from rates by server."""
    ours = rates[OURS]
    peers = [rates[name] for name in ("Mercurius", "Apollo") if name in rates]
    return [
        Reach("check-ins: rate over the bare transaction's under pgbench", ours / rates[BARE], 0.5, True),
        Reach("check-ins: rate over the better node peer's", ours / max(peers) if peers else None, 1, True),
        Reach(
            "commits while a server tells of them over those untold", rates[TOLD] / rates[BARE], 0.95, True
        ),
    ]
