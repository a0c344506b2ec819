"""Lines: who waits for the same, and who of them is next. By priority, and in turn among equals.

A line costs the same however many stand in it. What may not enter: what they wait for.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, Protocol, TypeVar

SPARE_ENTRIES = 64
"""Outdated entries of an order that are kept at least before they are cleared away."""


class Standing(Hashable, Protocol):
    """Somebody in a line. `priority` stays as it is while they stand there."""

    @property
    def priority(self) -> int:
        """Those with higher ones come first."""
        ...


Item = TypeVar("Item", bound=Standing)


class Line(Generic[Item]):
    """Those who wait for one thing: the highest priority first, and of equals the one that stands for longest."""

    __slots__ = ("_equals", "_order", "_size")

    def __init__(self) -> None:
        self._equals: dict[int, dict[Item, None]] = {}
        self._order: list[int] = []  # Priorities, negated, so that the highest comes first.
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Item]:
        for negated in self._order:
            yield from self._equals[-negated]

    def __contains__(self, item: Item) -> bool:
        return item in self._equals.get(item.priority, ())

    def add(self, item: Item) -> None:
        """Puts somebody behind their equals; who stands there already keeps the place."""
        equals = self._equals.get(item.priority)
        if equals is None:
            equals = self._equals[item.priority] = {}
            insort(self._order, -item.priority)
        if item not in equals:
            equals[item] = None
            self._size += 1

    def remove(self, item: Item) -> None:
        """Takes somebody out, where they stand in it."""
        equals = self._equals.get(item.priority)
        if equals is None or item not in equals:
            return
        del equals[item]
        self._size -= 1
        if not equals:
            del self._equals[item.priority]
            self._order.remove(-item.priority)

    def first(self) -> Item:
        """Returns who is next. Errors: IndexError where nobody is."""
        return next(iter(self._equals[-self._order[0]]))

    def next_turn(self, item: Item) -> None:
        """Puts somebody behind their equals, wherever they stood."""
        self.remove(item)
        self.add(item)


class Named(Standing, Protocol):
    """Somebody in a line of a namespace."""

    @property
    def namespace(self) -> str:
        """Where they belong."""
        ...


NamedItem = TypeVar("NamedItem", bound=Named)


class SharedLine(Generic[NamedItem]):
    """A line of several namespaces: next is the one that has least in use for its weight, and in it the first.

    `load(namespace)` tells how much of what they wait for a namespace has in use, divided by its weight; `eased` is to
    be called whenever that is less.
    """

    __slots__ = ("_load", "_order", "lines")

    def __init__(self, load: Callable[[str], float]) -> None:
        self._load = load
        self.lines: dict[str, Line[NamedItem]] = {}
        """By namespace; empty where nobody waits."""
        self._order: list[tuple[float, str]] = []  # A heap; entries whose load is another by now are outdated.

    def add(self, item: NamedItem) -> None:
        """Puts somebody into the line of their namespace."""
        line = self.lines.get(item.namespace)
        if line is None:
            line = self.lines[item.namespace] = Line()
            self._push(item.namespace)
        line.add(item)

    def remove(self, item: NamedItem) -> None:
        """Takes somebody out, where they stand in it."""
        line = self.lines.get(item.namespace)
        if line is not None:
            line.remove(item)
            if not line:
                del self.lines[item.namespace]

    def eased(self, namespace: str) -> None:
        """Takes note that the load of a namespace is less."""
        if namespace in self.lines:
            self._push(namespace)

    def first(self) -> NamedItem:
        """Returns who is next. Errors: IndexError where nobody is."""
        while True:
            load, namespace = self._order[0]
            line = self.lines.get(namespace)
            if line is None:
                heappop(self._order)
                continue
            now = self._load(namespace)
            if load == now:
                return line.first()
            heapreplace(self._order, (now, namespace))

    def _push(self, namespace: str) -> None:
        heappush(self._order, (self._load(namespace), namespace))
        if len(self._order) > 4 * len(self.lines) + SPARE_ENTRIES:
            self._order = [(self._load(one), one) for one in self.lines]
            heapify(self._order)

    def clear(self) -> None:
        """Lets everybody go."""
        self.lines.clear()
        self._order.clear()
