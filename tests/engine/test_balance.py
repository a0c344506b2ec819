"""Balance: who gives runs away, how many, and that it comes to rest."""

from __future__ import annotations

from uuid import UUID

import pytest

from orchestrator.engine import balance
from orchestrator.engine.balance import Balance

REPLICAS = [UUID(int=number) for number in range(1, 5)]
ME = REPLICAS[0]


def surplus(*loads: int) -> int:
    """What the first replica gives away where these drive so many runs."""
    made = Balance(lambda: loads[0])
    made.set_loads(ME, dict(zip(REPLICAS, loads, strict=False)))
    return made.surplus()


@pytest.mark.parametrize("loads", [(10_000,), (0, 0), (50, 0), (100, 0), (1_200, 1_000, 1_000), (0, 5_000)])
def test_little_differences_and_no_others_give_nothing(loads: tuple[int, ...]) -> None:
    assert surplus(*loads) == 0


def test_half_of_what_is_too_much_is_given() -> None:
    assert surplus(1_000, 0) == 250
    assert surplus(3_000, 0, 0) == 1_000


def test_who_takes_none_does_not_count() -> None:
    made = Balance(lambda: 1_000)
    made.set_loads(ME, {ME: 1_000})
    assert (made.surplus(), made.least(), made.yields) == (0, None, False)


@pytest.mark.parametrize("loads", [[20_000, 0, 0], [500, 0], [400, 3_000, 10, 10], [60, 0, 0, 0]])
def test_it_comes_to_rest_though_what_is_known_is_old(loads: list[int]) -> None:
    """Each goes by what the others had two rounds ago, and those that drive least take what is given."""
    seen = [list(loads), list(loads)]
    moved: list[int] = []
    for _ in range(400):
        old = seen[-2]
        seen.append(list(loads))
        given = 0
        for number, replica in enumerate(REPLICAS[: len(loads)]):
            made = Balance(lambda number=number: loads[number])  # type: ignore[misc]
            made.set_loads(replica, dict(zip(REPLICAS, old, strict=False)))
            count = min(made.surplus(), 100)
            if count:
                least = made.least()
                assert least is not None
                loads[number] -= count
                loads[REPLICAS.index(least)] += count
                given += count
        moved.append(given)
    assert moved[-100:] == [0] * 100, "runs go to and fro"
    mean = sum(loads) / len(loads)
    assert max(loads) <= mean * (1 + balance.TOLERANCE) + balance.TOLERANCE_RUNS


def test_who_has_given_leaves_what_is_due_to_the_others_for_a_while() -> None:
    now = 1_000.0
    made = Balance(lambda: 10, lambda: now)
    made.set_loads(ME, {REPLICAS[1]: 10})
    assert not made.yields
    made.gave()
    assert made.yields
    now += balance.YIELD_SECONDS
    assert not made.yields
