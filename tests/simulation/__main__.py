"""Runs simulations: `python -m tests.simulation --seeds N [--first K]`; with one seed `--trace` shows what happened."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from tests.simulation.parts import PARTS
from tests.simulation.tally import Tally
from tests.simulation.world import Outcome, simulate

TRACE_LINES = 60
SEEDS_A_SHARE = 20
"""Seeds that a process is given at a time."""
_interrupted: list[bool] = []
"""Not empty once somebody wants no more: an exception within a simulation would be taken for a fault of the engine."""


@dataclass(slots=True)
class Share:
    """What came of some seeds: sums, and what is to be told."""

    seeds: int = 0
    runs: int = 0
    events: int = 0
    virtual_seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    broken: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, other: Share) -> None:
        """Takes the sums of others over."""
        self.seeds, self.broken = self.seeds + other.seeds, self.broken + other.broken
        self.runs, self.events = self.runs + other.runs, self.events + other.events
        self.virtual_seconds += other.virtual_seconds
        self.tally.add(other.tally)


def main() -> int:
    """Runs seeds until one is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=count, default=1_000, help="how many seeds (default: 1000)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (default: 1)")
    parser.add_argument("--trace", action="store_true", help="show the whole trace of each seed")
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="what the worlds have (default: drawn)")
    parser.add_argument("--stress", nargs="*", default=[], help="what goes wrong for sure, and more often")
    parser.add_argument("--go-on", action="store_true", help="go on after a seed that is broken")
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--processes", type=count, default=processes, help="processes (default: one for each core)")
    options = parser.parse_args()
    begun = time.monotonic()
    whole = Share()
    with closing(shares_of(options)) as shares:
        for share in shares:
            whole.add(share)
            for line in share.lines:
                print(line, flush=True)
            if _interrupted or (whole.broken and not options.go_on):
                break  # What was simulated until then is told.
    took = time.monotonic() - begun
    print("\n".join(whole.tally.lines()))
    print(
        f"{whole.seeds} seeds in {took:.1f} s ({whole.seeds / took * 60:.0f} a minute in {options.processes} "
        f"processes), {whole.virtual_seconds / 3600:.1f} hours of virtual time, {whole.runs} runs, {whole.events} "
        f"events: {f'{whole.broken} broken' if whole.broken else 'all held'}"
    )
    return 1 if whole.broken else 0


def count(text: str) -> int:
    """Reads how many: one at least, since none hold whatever is wrong."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def shares_of(options: argparse.Namespace) -> Generator[Share, None, None]:
    """Simulates shares of the seeds, side by side; gives them in the order of their seeds."""
    end = options.first + options.seeds
    firsts = range(options.first, end, SEEDS_A_SHARE)
    work = partial(share_of, options)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _interrupted.append(True))
    options.processes = min(options.processes, len(firsts))
    if options.processes == 1:
        yield from map(work, firsts)
        return
    pool = ProcessPoolExecutor(options.processes, initializer=_leave_signals_to_the_parent)
    try:
        yield from pool.map(work, firsts)
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals_to_the_parent() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def share_of(options: argparse.Namespace, first: int) -> Share:
    """Simulates the seeds of one share, until one is broken."""
    share = Share()
    if not gc.get_freeze_count():
        gc.freeze()  # What is loaded by now stays, and need not be looked through after each seed.
    for seed in range(first, min(first + SEEDS_A_SHARE, options.first + options.seeds)):
        outcome = simulate(seed, options.stress, options.parts)
        share.add(Share(1, outcome.runs, outcome.events, outcome.virtual_seconds, outcome.tally))
        if options.trace:
            share.lines += outcome.trace
            share.lines.append(f"seed {seed}: trace {outcome.digest[:16]}, {outcome.callbacks} callbacks")
        if outcome.breach is not None:
            share.broken += 1
            share.lines.append(report(outcome, options.stress, options.parts, whole=options.trace))
            if not options.go_on:
                break
    return share


def report(
    outcome: Outcome, stress: Sequence[str] = (), parts: Sequence[str] | None = None, *, whole: bool = False
) -> str:
    """Says what is wrong with a seed, and how to see it again."""
    tail = [] if whole else outcome.trace[-TRACE_LINES:]
    given = " ".join(
        [*(("--parts", *parts) if parts is not None else ()), *(("--stress", *stress) if stress else ()), "--trace"]
    )
    return "\n".join(
        [
            *tail,
            f"seed {outcome.seed} is broken: {outcome.breach}",
            f"replay: python -m tests.simulation --first {outcome.seed} --seeds 1 {given}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
