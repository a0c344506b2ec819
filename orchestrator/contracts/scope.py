"""Scope: what a run's bindings and conditions can read. The engine holds one for each run, and tells it of ends."""

from __future__ import annotations

import enum
from typing import Any

from google.protobuf.message import Message

from orchestrator.domain.failures import Failure


class EndState(enum.IntEnum):
    """How a step ended, as a bit, so that sets of states are masks. The names are what expressions compare with."""

    SUCCEEDED = 1
    FAILED = 2
    SKIPPED = 4


class Scope:
    """Input of a run and the ends of its steps, by index; in a scope of `for_part`, also what one place alone can read.

    Messages are shared, never copied: whoever puts one in must not change it afterwards. `states[i]` is None until step
    i has ended, `outputs[i]` is None unless it succeeded.
    """

    __slots__ = ("failures", "index", "input", "item", "iteration", "key", "output", "outputs", "previous", "states")

    def __init__(self, step_count: int, run_input: Message | None) -> None:
        self.input = run_input
        self.states: list[EndState | None] = [None] * step_count
        self.outputs: list[Message | None] = [None] * step_count
        self.failures: dict[int, Failure] = {}
        self.item: Any = None
        self.key: Any = None
        self.previous: Message | None = None
        self.output: Message | None = None
        self.index = self.iteration = 0

    def for_part(
        self,
        *,
        item: Any = None,
        index: int = 0,
        key: Any = None,
        previous: Message | None = None,
        iteration: int = 0,
        output: Message | None = None,
    ) -> Scope:
        """Returns a scope of one item, iteration or undo call, which shares input and ends with this one.

        `index` counts from 0, `iteration` from 1. `previous` is None in the first iteration; `output` is the step's
        own. What is not given is as in this scope.
        """
        part = Scope.__new__(Scope)
        part.input, part.states, part.outputs, part.failures = self.input, self.states, self.outputs, self.failures
        part.item = self.item if item is None else item
        part.index = index or self.index
        part.key = self.key if key is None else key
        part.previous = self.previous if previous is None else previous
        part.iteration = iteration or self.iteration
        part.output = self.output if output is None else output
        return part

    def set_succeeded(self, index: int, output: Message) -> None:
        """Step `index` has succeeded with `output`."""
        self.states[index] = EndState.SUCCEEDED
        self.outputs[index] = output
        self.failures.pop(index, None)

    def set_failed(self, index: int, failure: Failure) -> None:
        """Step `index` has failed for good with `failure`."""
        self.states[index] = EndState.FAILED
        self.outputs[index] = None
        self.failures[index] = failure

    def set_open(self, index: int) -> None:
        """Step `index`, which may have ended, has not any more: it begins anew."""
        self.states[index] = None
        self.outputs[index] = None
        self.failures.pop(index, None)

    def set_skipped(self, index: int) -> None:
        """Step `index` was skipped."""
        self.states[index] = EndState.SKIPPED
        self.outputs[index] = None
        self.failures.pop(index, None)
