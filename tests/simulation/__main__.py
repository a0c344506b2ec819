"""Runs simulations: `python -m tests.simulation --seeds N [--first K]`; with one seed `--trace` shows what happened."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.parts import PARTS
from tests.simulation.tally import Tally
from tests.simulation.world import Outcome, simulate

TRACE_LINES = 60


def main() -> int:
    """Runs seeds until one is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=seeds, default=1_000, help="how many seeds (default: 1000)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (default: 1)")
    parser.add_argument("--trace", action="store_true", help="show the whole trace of each seed")
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="what the worlds have (default: drawn)")
    parser.add_argument("--stress", nargs="*", default=[], help="what goes wrong for sure, and more often")
    parser.add_argument("--go-on", action="store_true", help="go on after a seed that is broken")
    options = parser.parse_args()
    begun = time.monotonic()
    broken = runs = events = 0
    tally = Tally()
    virtual_seconds = 0.0
    seed = options.first
    for seed in range(options.first, options.first + options.seeds):
        outcome = simulate(seed, options.stress, options.parts)
        runs, events = runs + outcome.runs, events + outcome.events
        virtual_seconds += outcome.virtual_seconds
        tally.add(outcome.tally)
        if options.trace:
            print("\n".join(outcome.trace))
            print(f"seed {seed}: trace {outcome.digest[:16]}, {outcome.callbacks} callbacks")
        if outcome.breach is not None:
            broken += 1
            print(report(outcome, whole=options.trace))
            if not options.go_on:
                break
    took = time.monotonic() - begun
    count = seed - options.first + 1
    print("\n".join(tally.lines()))
    print(
        f"{count} seeds in {took:.1f} s ({count / took * 60:.0f} a minute), {virtual_seconds / 3600:.1f} hours of "
        f"virtual time, {runs} runs, {events} events: {f'{broken} broken' if broken else 'all held'}"
    )
    return 1 if broken else 0


def seeds(text: str) -> int:
    """Reads how many seeds: one at least, since none hold whatever is wrong."""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is not 1 or more")
    return count


def report(outcome: Outcome, *, whole: bool = False) -> str:
    """Says what is wrong with a seed, and how to see it again."""
    tail = [] if whole else outcome.trace[-TRACE_LINES:]
    return "\n".join(
        [
            *tail,
            f"seed {outcome.seed} is broken: {outcome.breach}",
            f"replay: python -m tests.simulation --first {outcome.seed} --seeds 1 --trace",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
