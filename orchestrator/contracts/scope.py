"""Scope: what a run's bindings and conditions can read. The engine holds one for each run, and tells it of ends."""

from __future__ import annotations

import enum

from google.protobuf.message import Message

from orchestrator.domain.failures import Failure


class EndState(enum.IntEnum):
    """How a step ended, as a bit, so that sets of states are masks. The names are what expressions compare with."""

    SUCCEEDED = 1
    FAILED = 2
    SKIPPED = 4


class Scope:
    """Input of a run and the ends of its steps, by index.

    Messages are shared, never copied: whoever puts one in must not change it afterwards. `states[i]` is None until step
    i has ended, `outputs[i]` is None unless it succeeded.
    """

    __slots__ = ("failures", "input", "outputs", "states")

    def __init__(self, step_count: int, run_input: Message | None) -> None:
        self.input = run_input
        self.states: list[EndState | None] = [None] * step_count
        self.outputs: list[Message | None] = [None] * step_count
        self.failures: dict[int, Failure] = {}

    def for_part(
        self,
        *,
        item: object = None,
        index: int = 0,
        key: object = None,
        previous: Message | None = None,
        iteration: int = 0,
        output: Message | None = None,
    ) -> Scope:
        """Returns what the request of one item, iteration or undo call can read: all that the run's can, which is
        shared, and what is given here."""
        part = Scope(0, self.input)
        part.states, part.outputs, part.failures = self.states, self.outputs, self.failures
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

    def set_skipped(self, index: int) -> None:
        """Step `index` was skipped."""
        self.states[index] = EndState.SKIPPED
        self.outputs[index] = None
        self.failures.pop(index, None)
