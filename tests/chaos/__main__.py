"""Things break while a ward works, and nothing is lost: `make chaos`."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.chaos import report
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.postgres import small_disk
from tests.chaos.run import Act, act


def main() -> int:
    """Runs the acts and prints the report; 0 where all was well."""
    given = _arguments()
    chosen = [item for item in FAULTS if not given.only or any(part in item.name for part in given.only)]
    # An end by signal is an end like any other: everything is cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = given.keep or Path(tempfile.mkdtemp(prefix="ekoyka-chaos-"))
    folder.chmod(0o711)  # PostgreSQL, which never runs as root, passes through
    good = False
    try:
        acts = _acts(folder, chosen, given)
        good = report.conclude(acts, seed=given.seed)
    finally:
        if good and given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            report.say(f"histories and logs: {folder}")
    return 0 if good else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of all that is left to chance [1]")
    parser.add_argument(
        "--seconds", type=int, default=0, help="go on for so long; each fault happens once at least [0]"
    )
    parser.add_argument("--clients", type=int, default=10, help="doctors at work [10]")
    parser.add_argument("--only", action="append", help="faults whose name holds this; may be repeated")
    parser.add_argument("--keep", type=Path, help="a folder, there already, for histories and logs")
    return parser.parse_args()


def _acts(folder: Path, faults: Sequence[Fault], given: argparse.Namespace) -> list[Act]:
    """What happens to processes and connections on a real disk; what happens to the disk, on a small one."""
    acts = []
    ends = time.monotonic() + given.seconds
    with ExitStack() as stack:
        for name, on_disk in ("processes", False), ("disk", True):
            own = [item for item in faults if item.on_disk == on_disk]
            if not own:
                continue
            place, disk = folder / name, folder / f"{name}-disk"
            place.mkdir()
            disk.mkdir()
            if on_disk:
                try:
                    stack.enter_context(small_disk(disk))
                except OSError as error:
                    report.say(f"SKIPPED, as nothing can be mounted here ({error}): faults of the disk")
                    continue
            done = asyncio.run(
                act(
                    place,
                    disk,
                    _in_order(own, random.Random(given.seed), ends if not on_disk else 0),  # noqa: S311
                    seed=given.seed,
                    clients=given.clients,
                    say=report.say,
                )
            )
            done.history.keep(place / "history.jsonl")
            acts.append(done)
            if not on_disk:
                shutil.rmtree(disk)
    return acts


def _in_order(faults: Sequence[Fault], chance: random.Random, ends: float) -> Iterator[Fault]:
    """Each of them, by chance; and all again, as long as there is time."""
    yield from chance.sample(faults, len(faults))
    while time.monotonic() < ends:
        yield chance.choice(faults)


if __name__ == "__main__":
    sys.exit(main())
