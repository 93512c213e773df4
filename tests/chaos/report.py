"""What a run says of itself."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from tests.chaos.run import Act

# The figure.
RECOVERED_S = 5.0
MOST_PROBLEMS = 40


def say(line: str) -> None:
    """A line for whoever watches."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def conclude(acts: Sequence[Act], *, seed: int) -> bool:
    """The report is printed; whether all was well."""
    outcomes: Counter[tuple[str, str]] = Counter()
    counted: Counter[str] = Counter()
    for act in acts:
        outcomes.update(act.history.outcomes())
        counted.update(act.verdict.counted)
    say(f"\nseed {seed}; {sum(act.lasted_s for act in acts):.0f} s of load\n\nrequests, by how they ended:")
    for (name, outcome), count in sorted(outcomes.items()):
        say(f"  {count:>7}  {name}: {outcome}")
    say("\nlooked at:")
    for what, count in sorted(counted.items()):
        say(f"  {count:>7}  {what}")
    say(f"\nrecovered (at most {RECOVERED_S:g} s), in seconds after the fault:")
    slow = []
    for item in (recovery for act in acts for recovery in act.recoveries):
        answered, heard = max(item.answered_s), max(item.heard_s)
        mark = "  " if item.slowest_s <= RECOVERED_S else "✗ "
        say(f"  {mark}answered {answered:5.2f}  feed {heard:5.2f}  {item.fault}")
        if item.slowest_s > RECOVERED_S:
            slow.append(f"recovered after {item.slowest_s:.1f} s: {item.fault}")
    problems = slow + [problem for act in acts for problem in act.verdict.problems]
    for problem in problems[:MOST_PROBLEMS]:
        say(f"✗ {problem}")
    if len(problems) > MOST_PROBLEMS:
        say(f"✗ … and {len(problems) - MOST_PROBLEMS} more")
    say("\nNothing was lost." if not problems else f"\n{len(problems)} problems.")
    return bool(acts) and not problems
