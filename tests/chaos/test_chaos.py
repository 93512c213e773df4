"""A short piece of `make chaos`: three faults under load, and nothing is lost."""

from pathlib import Path

from tests.chaos import faults
from tests.chaos.run import act

CHOSEN = (faults.kill_a_server, faults.kill_postgresql, faults.reset_all_connections)
# The program demands 5 s; here other tests may be at work at the same time.
RECOVERED_S = 15


def silent(_: str) -> None:
    """Nobody watches."""


async def test_what_was_acknowledged_survives_kills_and_cuts_and_the_servers_recover_by_themselves(
    tmp_path: Path,
) -> None:
    chosen = [item for item in faults.FAULTS if item.do in CHOSEN]

    done = await act(tmp_path, tmp_path, chosen, seed=7, clients=6, say=silent)

    assert done.verdict.problems == []
    assert len(done.recoveries) == len(CHOSEN)
    assert [item for item in done.recoveries if item.slowest_s > RECOVERED_S] == []
    # Under load: things were done and refused, answers were lost, subscribers were told.
    assert done.verdict.counted["acknowledged changes"] > 50
    assert done.verdict.counted["changes refused or not begun"] > 50
    assert done.verdict.counted["events told"] > 50
