"""Injects real faults under load, checks what must hold, and writes and prints the figures.

`python -m tests.chaos --help` tells the options. Exits with 1 only where it could not measure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
from pathlib import Path
from typing import Any

from tests.acceptance.processes import ROOT
from tests.chaos.campaigns import CAMPAIGNS, NotMeasured, run_campaign
from tests.chaos.report import table, total

SECONDS = 900.0


def main() -> int:
    """Runs campaigns as the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="time of faults, over all campaigns (%(default)g)"
    )
    parser.add_argument(
        "--seed", type=int, help="what chance begins with; the faults are the same again, their effect is not"
    )
    parser.add_argument(
        "--campaigns",
        nargs="+",
        choices=CAMPAIGNS,
        default=list(CAMPAIGNS),
        metavar="CAMPAIGN",
        help="only those: %(choices)s",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build/chaos.json", help="file to write")
    parser.add_argument("--keep", type=Path, help="folder to keep logs of clients, workers, watchers and replicas in")
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.randrange(1_000_000)
    records: list[dict[str, Any]] = []
    try:
        for number, name in enumerate(chosen.campaigns):
            campaign, seconds = CAMPAIGNS[name], chosen.seconds / len(chosen.campaigns)
            outcome = asyncio.run(run_campaign(campaign, seconds, seed + number, chosen.keep))
            records.append(outcome.as_json())
            print(table(records[-1:]), flush=True)
    except NotMeasured as error:
        print(f"could not measure: {error}", file=sys.stderr)
        return 1
    finally:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        document = {"machine": machine, "seed": seed, "campaigns": records, "total": total(records)}
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    print(table([*records, document["total"]]))
    print(f"every figure: {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
