"""The server without one of its guards, to see what it costs: ``python -m benchmarks.without log|wall``.

It serves nobody but a benchmark: no command of EKoyka's leaves a guard out.
"""

from __future__ import annotations

import sys
from typing import Any

from ekoyka import app as application
from ekoyka import cli
from ekoyka.database import WARD_ROLE
from ekoyka.identity.readings import Readings


async def _forget(*_: Any) -> None:
    """Nobody is told."""


def main(guard: str) -> None:
    """Serves; the one process, by the environment."""
    match guard:
        case "log":
            setattr(Readings, "note", _forget)  # noqa: B010 -- what nobody else may do
        case "wall":
            setattr(application, "SERVER_ROLE", WARD_ROLE)  # noqa: B010
        case _:
            sys.exit(__doc__)
    sys.argv = ["ekoyka", "serve"]
    cli.app()


if __name__ == "__main__":
    main(*sys.argv[1:])
