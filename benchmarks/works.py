"""The works as data: what is run, how often, how many at once or how many a second. No I/O.

A system is told a work and how to do it is its own affair, so that each work is the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass

FAN = 100
"""Parallel steps of W3, before its join."""

TEXT = "x" * 100
"""What every run and every step is given and answers."""

ROW_BYTES = 300
"""As large as an ordinary event of the journal."""

IN_FLIGHT = 64
LIMIT_SECONDS = 8.0
"""No work starts another run after that: slow systems do fewer runs, never other ones."""

SHAPES = {"chain-1": (1,), "chain-3": (1, 1, 1), "chain-10": (1,) * 10, "fan": (FAN, 1)}
"""How many steps run side by side in each stage of a run; a stage begins when the one before it has ended."""


@dataclass(frozen=True, slots=True)
class Work:
    """So many runs (calls, commits) of one shape.

    With `rate` they arrive by chance at so many a second, whether or not answers come (open loop); otherwise
    `in_flight` of them are under way, and each is followed by the next (closed loop).
    """

    name: str
    shape: str
    steps: int
    count: int
    in_flight: int = 1
    rate: float = 0.0

    def scaled(self, scale: float) -> int:
        """Returns how many to do at a scale; at least two."""
        return max(round(self.count * scale), 2)


def _run(name: str, shape: str, count: int, in_flight: int = 1, rate: float = 0.0) -> Work:
    return Work(name, shape, sum(SHAPES[shape]), count, in_flight, rate)


W1 = _run("W1", "chain-1", 500)
W2 = _run("W2", "chain-10", 100)
W3 = _run("W3", "fan", 30)
W4 = _run("W4", "chain-3", 2000, IN_FLIGHT)
CLOSED = (W1, W2, W3, W4)

OPEN = tuple(_run(f"open/{rate}", "chain-3", 5 * rate, rate=rate) for rate in (300, 1000))
"""Five seconds each of W4's runs, as they would come from many users."""

HOPELESS = 2.0
"""No system is offered an open loop of more than so many times the runs that it did in W4."""

CLIENTS = tuple(
    _run(f"clients/{number}", "chain-3", min(60 + 30 * number, 1500), number) for number in (1, 4, 16, 64, 256)
)
"""W4 with other numbers of clients."""

COMMIT = Work("commit", "rows-1", 1, 500)
COMMIT_100 = Work("commit100", "rows-100", 100, 50)
ECHO = Work("echo", "unary", 1, 1000)
ECHO_64 = Work("echo64", "unary", 1, 6000, IN_FLIGHT)
STREAM = Work("stream", "stream-1", 1, 1000)
STREAM_50 = Work("stream50", "stream-50", 50, 400)

WORKS = (COMMIT, COMMIT_100, ECHO, ECHO_64, STREAM, STREAM_50, *CLOSED, *CLIENTS, *OPEN)
"""All of them."""
