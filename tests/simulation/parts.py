"""What a world may have beyond runs: drawn apart from all else, so that a seed without any of it is as it ever was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from baton.v1 import limit_pb2

from orchestrator.engine.limit_ports import LimitRow, Rate
from orchestrator.engine.limits import EngineLimits
from tests.simulation.workflows import KEY_LIMIT, SAFE, WORK

PARTS = (
    "limits",
    "growth",
    "mending",
    "schedules",
    "balance",
    "tuning",
    "streams",
    "stale",
    "retries",
    "rates",
    "poison",
    "revisions",
)
"""`limits` bound the calls of both namespaces; with `growth` workflows have steps that delegate, that somebody has to
approve, and that name limits; with `mending` people retry, skip, fork, pause and resume;
`schedules` submit runs by themselves; with `balance` replicas give runs away that drive a few more than others; with
`tuning` limits are changed while calls go on; with `streams` calls go to workers by the product's work streams;
with `stale` reads are long under way, and tell of the past; with `retries` few calls that failed may be tried again;
with `rates` one method may be called once in a second or two; with `poison` some calls do harm to whoever makes
them; with `revisions` new revisions of workflows are applied while runs are submitted."""

DRAWN = ("limits", "growth", "mending", "schedules", "stale", "revisions")
"""Those that seeds have by themselves, in the order in which they are drawn: a new one goes to the end. The others hold
over hundreds of seeds, not yet over thousands."""

CHANCE = 0.5
"""How likely each is in a seed."""


def draw_parts(seed: int) -> frozenset[str]:
    """Draws what the world of a seed has."""
    draws = Random(f"parts {seed}")
    return frozenset(part for part in DRAWN if draws.random() < CHANCE)


def draw_retries(seed: int, limits: EngineLimits) -> EngineLimits:
    """Draws a small retry budget."""
    draws = Random(f"retries {seed}")
    return replace(limits, retry_budget_ratio=0.01, retry_budget_per_second=draws.choice((0.2, 0.5)))


def draw_limits(seed: int, namespace: str, parts: frozenset[str]) -> Sequence[LimitRow]:
    """Draws the limits of a namespace."""
    draws, rows = Random(f"limits {seed} {namespace}"), list[LimitRow]()

    def add(name: str, scope: limit_pb2.LimitScope.ValueType, target: str, most: int, rate: Rate | None = None) -> None:
        rows.append(LimitRow(namespace, name, int(scope), target, most, rate, 0, 0))

    if "growth" in parts:
        add(KEY_LIMIT, limit_pb2.LIMIT_SCOPE_KEY, "", draws.choice((1, 2)))
    if "limits" in parts or "tuning" in parts:
        chance = 1.0 if "tuning" in parts else 0.5
        if draws.random() < chance:
            add("everything", limit_pb2.LIMIT_SCOPE_NAMESPACE, "", draws.choice((1, 2, 3)))
        if draws.random() < chance:
            add("lab", limit_pb2.LIMIT_SCOPE_WORKER, "lab", draws.choice((1, 2)))
        if draws.random() < 0.6:
            add("work", limit_pb2.LIMIT_SCOPE_METHOD, WORK, draws.choice((1, 2)))
        if draws.random() < 0.5:
            add("safe", limit_pb2.LIMIT_SCOPE_METHOD, SAFE, 0, Rate(4, 1_000_000, draws.choice((2, 4))))
    if "rates" in parts:
        add("pace", limit_pb2.LIMIT_SCOPE_METHOD, WORK, 0, Rate(1, draws.choice((1_000_000, 2_000_000)), 3))
    return rows
