"""Measures Baton beside what disk and wire cost, a sketch of its design, and peers; writes and prints the figures.

`python -m benchmarks --help` tells the options. Exits with 1 only where it could not measure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.database import Database
from benchmarks.environment import Environment
from benchmarks.machine import describe
from benchmarks.processes import ROOT, NotMeasured
from benchmarks.series import Series
from benchmarks.systems import Place
from benchmarks.systems.all import QUICK, QUICK_WORKS, SYSTEMS
from benchmarks.tables import report


def main() -> int:
    """Measures as the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the main ratios: no peers, fewer runs")
    parser.add_argument("--scale", type=float, help="share of the runs and calls to make (default: 1, or 0.4 if quick)")
    parser.add_argument("--repetitions", type=int, default=3, help="how often to measure everything (default: 3)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, metavar="SYSTEM", help="only those: %(choices)s")
    parser.add_argument("--works", nargs="+", metavar="WORK", help="only those, such as W4 or open/300")
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench.json", help="file to write")
    parser.add_argument("--environment", type=Path, default=ROOT / "build/bench", help="where peers are installed")
    parser.add_argument("--offline", action="store_true", help="install nothing; peers that are not there are left out")
    chosen = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="baton-bench-"))
    try:
        machine: dict[str, str | int | float] = dict(describe())
        with Database() as database:
            environment = Environment(chosen.environment)
            names = chosen.systems or (QUICK if chosen.quick else SYSTEMS)
            if not chosen.offline and not chosen.quick:
                environment.install()
            machine |= environment.versions()
            place = Place(database, directory, environment)
            works = chosen.works or (QUICK_WORKS if chosen.quick else ())
            series = Series(place, chosen.scale or (0.4 if chosen.quick else 1.0), works)
            series.measure([SYSTEMS[name](place) for name in names], chosen.repetitions)
    except NotMeasured as error:
        print(f"could not measure: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    document = {
        "machine": machine,
        "absent": series.absent,
        "records": [record.as_json() for record in series.records],
        "samples": series.samples,
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(document) + "\n")
    print(report(machine, series.records, series.absent))
    print(f"every figure: {chosen.output}")
    if not chosen.quick:
        print(environment.draw(str(chosen.output), "--curves", str(chosen.output.with_name("curves.json"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
