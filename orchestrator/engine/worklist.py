"""What is still to be done in this tick: kind by kind, for all runs in turn, instead of run by run.

Many runs move in one tick, and what one of them needs passes through so much code that the processor's caches hold
nothing of it any more when the next one comes. All answers are recorded, then all steps queued, and so on: short runs
cost an eighth less that way (docs/decisions/068-kind-by-kind.md).

It is worked off before the journal takes a batch, so that what belongs together shares a commit, after each batch, and
at the latest in the loop's next turn; before that where somebody must see what came before: a timer, a verb on a run,
the scrubber, a submission that is near a limit. What may not enter: waiting, and what belongs to one kind of work.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from typing import Generic, TypeVarTuple

from orchestrator.engine.live import LiveRun

_LOGGER = logging.getLogger(__name__)

Rest = TypeVarTuple("Rest")


class Kind(enum.IntEnum):
    """Kinds of work, in the order in which they are done."""

    SEND = 0
    """Calls whose deliveries became durable are made."""
    RECORD = 1
    """Answers of workers go to `decide`."""
    QUEUE = 2
    """Steps that a decision made ready go into admission."""
    START = 3
    """Steps that admission has given an endpoint start their attempts."""
    ENCODE = 4
    """Events are brought into their stored form."""


class Todo(Generic[*Rest]):
    """Work of one kind. Each item is a run and what else `do` wants to know."""

    __slots__ = ("_worklist", "do", "items")

    def __init__(self, worklist: Worklist, do: Callable[[LiveRun, *Rest], object]) -> None:
        self._worklist, self.do = worklist, do
        self.items: list[tuple[LiveRun, *Rest]] = []

    def add(self, item: tuple[LiveRun, *Rest]) -> None:
        """Adds an item. By the time that it is done the run may have moved on or be forgotten: `do` looks."""
        self.items.append(item)
        if not self._worklist.due:
            self._worklist.wake()


class Worklist:
    """What is still to be done in this tick. `on_fault` is told of a run whose item could not be done."""

    def __init__(self, on_fault: Callable[[LiveRun], None]) -> None:
        self._on_fault = on_fault
        self._kinds: list[tuple[Kind, Todo[*tuple[object, ...]]]] = []
        self.due = False
        """Whether it will be worked off in the loop's next turn."""

    def of(self, kind: Kind, do: Callable[[LiveRun, *Rest], object]) -> Todo[*Rest]:
        """Makes the list of one kind of work. `do` is called for each of its items; what it raises ends that run."""
        todo = Todo(self, do)
        self._kinds = sorted([*self._kinds, (kind, todo)], key=lambda one: one[0])
        return todo

    def wake(self) -> None:
        """Has what was added done in the loop's next turn, where nobody does it before."""
        self.due = True
        asyncio.get_running_loop().call_soon(self._in_turn)

    def work_off(self) -> None:
        """Does everything, and what comes of it, until nothing is left."""
        left = True
        while left:
            left = False
            for _, todo in self._kinds:
                if todo.items:
                    left = True
                    items, todo.items, do = todo.items, [], todo.do
                    for item in items:
                        try:
                            do(*item)
                        except Exception:
                            self.fail(item[0])

    def fail(self, live: LiveRun) -> None:
        """Gives up a run with which something went wrong that is not foreseen. Called while that is handled."""
        _LOGGER.exception("run %s: it could not be driven on", live.key.run_id)
        try:
            self._on_fault(live)
        except Exception:
            _LOGGER.exception("run %s: it could not be given up", live.key.run_id)

    def _in_turn(self) -> None:
        self.due = False
        self.work_off()
