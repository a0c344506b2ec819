"""Lines: who is next, by priority, in turn, and between namespaces by what they have for their weight."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from orchestrator.engine.lines import Line, SharedLine


@dataclass(eq=False)
class Waiting:
    """Somebody in a line."""

    name: str
    priority: int = 0
    namespace: str = ""


def test_a_line_is_by_priority_and_then_by_time() -> None:
    line: Line[Waiting] = Line()
    first, second, high, low = Waiting("first"), Waiting("second"), Waiting("high", 2), Waiting("low", -2)
    for item in (low, first, second, high, first):
        line.add(item)
    assert list(line) == [high, first, second, low]
    assert len(line) == 4
    line.next_turn(first)
    line.remove(high)
    line.remove(high)
    assert line.first() is second
    assert high not in line
    for item in (first, second, low):
        line.remove(item)
    assert not line


def test_an_empty_line_has_no_first() -> None:
    with pytest.raises(IndexError):
        Line[Waiting]().first()


@pytest.mark.parametrize("seed", range(30))
def test_the_namespace_with_least_for_its_weight_is_next(seed: int) -> None:
    draw = random.Random(seed)
    loads = dict.fromkeys("abcd", 0.0)
    shared: SharedLine[Waiting] = SharedLine(loads.__getitem__)
    waiting: list[Waiting] = []
    for number in range(400):
        action = draw.randint(0, 3)
        if action == 0:
            waiting.append(Waiting(str(number), draw.randint(-1, 1), draw.choice("abcd")))
            shared.add(waiting[-1])
        elif action == 1 and waiting:
            shared.remove(waiting.pop(draw.randrange(len(waiting))))
        elif action == 2:
            loads[draw.choice("abcd")] += 1
        else:
            namespace = draw.choice("abcd")
            loads[namespace] = max(loads[namespace] - 1, 0)
            shared.eased(namespace)
        assert bool(shared.lines) == bool(waiting)
        if waiting:
            first = shared.first()
            assert loads[first.namespace] == min(loads[one.namespace] for one in waiting)
            assert first.priority == max(one.priority for one in waiting if one.namespace == first.namespace)
