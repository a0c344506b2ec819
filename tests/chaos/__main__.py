"""Injects real faults under load, checks what must hold, and writes and prints the figures.

`python -m tests.chaos --help` tells the options. Exits with 1 only where it could not measure.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import platform
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from tests.acceptance.processes import ROOT
from tests.chaos import (
    flapping,
    herd,
    locked,
    neighbour,
    overload,
    slow_commits,
    slow_worker,
    snapshot,
    timers,
)
from tests.chaos.campaigns import CAMPAIGNS, Effort, NotMeasured, Outcome, run_campaign
from tests.chaos.database import NoDisk
from tests.chaos.report import table, total

SECONDS = 1800.0

SHARES = {"recovery": 2.0, "overload": 3.0}
"""How much of the time campaigns get, where that is not as much as others."""

NAMED: Mapping[str, Callable[[Effort, int, Path | None], Coroutine[None, None, Outcome]]] = {
    name: functools.partial(run_campaign, campaign) for name, campaign in CAMPAIGNS.items()
} | {
    overload.NAME: overload.run_overload,
    neighbour.NAME: neighbour.run_neighbours,
    slow_worker.NAME: slow_worker.run_slow_worker,
    flapping.NAME: flapping.run_flapping,
    timers.NAME: timers.run_timers,
    herd.NAME: herd.run_herd,
    snapshot.NAME: snapshot.run_snapshot,
    locked.NAME: locked.run_locked,
    slow_commits.NAME: slow_commits.run_slow_commits,
}


def main() -> int:
    """Runs campaigns as the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="time of faults, over all campaigns (%(default)g)"
    )
    parser.add_argument(
        "--least",
        type=int,
        default=0,
        metavar="N",
        help="go on, for up to four times as long, until N faults of each kind",
    )
    parser.add_argument(
        "--seed", type=int, help="what chance begins with; the faults are the same again, their effect is not"
    )
    parser.add_argument(
        "--campaigns",
        nargs="+",
        choices=NAMED,
        default=list(NAMED),
        metavar="CAMPAIGN",
        help="only those: %(choices)s",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build/chaos.json", help="file to write")
    parser.add_argument("--keep", type=Path, help="folder to keep logs of clients, workers, watchers and replicas in")
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.randrange(1_000_000)
    records: list[dict[str, Any]] = []
    injected: Counter[str] = Counter()
    try:
        for number, name in enumerate(chosen.campaigns):
            seconds = chosen.seconds * SHARES.get(name, 1.0) / sum(SHARES.get(each, 1.0) for each in chosen.campaigns)
            effort = Effort(seconds, chosen.least, injected)
            try:
                outcome = asyncio.run(NAMED[name](effort, seed + number, chosen.keep))
            except NoDisk as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            records.append(outcome.as_json())
            print(table(records[-1:]), flush=True)
    except NotMeasured as error:
        print(f"could not measure: {error}", file=sys.stderr)
        return 1
    finally:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        whole = total(records)
        document = {"machine": machine, "seed": seed, "campaigns": records, "total": whole}
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    print(table([*records, whole]))
    print(f"every figure: {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
