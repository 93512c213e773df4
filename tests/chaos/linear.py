"""Linearizability of one object's history: whether what was done to it and seen of it fits one order.

Just-in-time linearization (Lowe, "Testing for linearizability", 2017): instants are gone through once, and every
state that the object may be in is kept, together with what is under way and has taken effect already. An operation
takes effect as late as it may: when one that has ended needs it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

State = tuple[Any, ...]
# So many states of the search are looked at before it is given up.
LARGEST_SEARCH = 2_000_000


class Undecided(Exception):
    """The history leaves too many orders open to go through them all."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What somebody did to the object, or saw of it, at some instant from ``began`` to ``ended``.

    ``step`` gives the state after it, or None where it cannot happen; an observation leaves the state as it is.
    Where nobody knows whether it happened at all (not ``certain``), it may have at any time from ``began`` on,
    or never; where it did and nobody knows when, ``ended`` is infinite.
    """

    name: str
    began: float
    ended: float
    step: Callable[[State], State | None]
    observes: bool = False
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Impossible:
    """No order explains the history up to and with this operation; the states are those possible before it."""

    operation: Operation
    states: tuple[State, ...]


_Configuration = tuple[State, frozenset[int]]
"""A state the object may be in, and which operations under way have led to it or were seen to fit."""


def _instants(history: list[Operation]) -> Iterator[tuple[int, bool]]:
    """The beginnings and the ends (True) of operations, by number, in time; at one instant, beginnings first."""
    moments = [(item.began, False, number) for number, item in enumerate(history)]
    moments += [(item.ended, True, number) for number, item in enumerate(history) if item.certain]
    for _, ends, number in sorted(moments):
        yield number, ends


def explain(history: Iterable[Operation], initial: State) -> Impossible | None:
    """None where some order of the operations, each at an instant of its own, explains all that was seen.

    Raises `Undecided`.
    """
    operations = list(history)
    under_way: dict[int, Operation] = {}
    possible: set[_Configuration] = {(initial, frozenset())}
    effort = itertools.count()

    def seen(state: State, done: frozenset[int]) -> _Configuration:
        """With all observations that fit the state: to have been made now costs them nothing."""
        fitting = [
            number
            for number, item in under_way.items()
            if item.observes and number not in done and item.step(state) is not None
        ]
        return state, done.union(fitting)

    def led_to(start: _Configuration, wanted: int) -> Iterator[_Configuration]:
        """What the configuration can become by effects under way, as few as let the wanted operation happen."""
        known, stack = {start}, [start]
        while stack:
            state, done = stack.pop()
            if wanted in done:
                yield state, done
                continue
            for number, item in under_way.items():
                if item.observes or number in done:
                    continue
                after = item.step(state)
                if after is None:
                    continue
                if next(effort) > LARGEST_SEARCH:
                    raise Undecided
                following = seen(after, done | {number})
                if following not in known:
                    known.add(following)
                    stack.append(following)

    for number, ends in _instants(operations):
        if not ends:
            under_way[number] = operations[number]
            if operations[number].observes:
                possible = {seen(*item) for item in possible}
            continue
        following = {found for item in possible for found in led_to(item, number)}
        if not following:
            return Impossible(operations[number], tuple(sorted({state for state, _ in possible}, key=repr)))
        del under_way[number]
        possible = {(state, done - {number}) for state, done in following}
    return None


NEVER = math.inf
"""The end of an operation of which nobody knows when it happened."""
