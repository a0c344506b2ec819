"""The data of a run: what its steps gave, and what bindings and conditions make of it.

It answers the core's questions (`plan.Conditions`) and builds the requests of calls. What may not enter: decisions,
I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from orchestrator.contracts.compiled import CompiledStep, CompiledTarget, CompiledWorkflow, Items
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.violations import EvaluationFailed
from orchestrator.domain.events import Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.run import Run
from orchestrator.domain.states import StepState
from orchestrator.domain.waits import RunAwaited
from orchestrator.domain.workflow import StepRole
from orchestrator.engine import machine
from orchestrator.engine.fitting import Pins, pins_of
from orchestrator.engine.limits import MAX_PAYLOAD_BYTES
from orchestrator.engine.messages import to_any


def evaluation_failure(error: EvaluationFailed) -> Failure:
    """Turns an evaluation that failed into the failure of a step or run."""
    return Failure(Code.FAILED_PRECONDITION, "EVALUATION_FAILED", str(error), Origin.ORCHESTRATOR)


def too_large(what: str, size: int) -> Failure:
    """Makes the failure of a payload over the limit."""
    text = f"{what} has {size} bytes; the limit is {MAX_PAYLOAD_BYTES}"
    return Failure(Code.RESOURCE_EXHAUSTED, "PAYLOAD_TOO_LARGE", text, Origin.ORCHESTRATOR)


def output_class_of(compiled: CompiledWorkflow, index: int) -> type[Message] | None:
    """Returns the class of a step's output, as bindings read it; None where they cannot."""
    step = compiled.steps[index]
    return step.items.output_class if step.items is not None else step.output_class


class RunData:
    """Implements plan.Conditions for a run. Steps are named by their index in the run.

    `answer` is the message of the outcome that is being recorded, which need not be parsed again.
    """

    def __init__(self, run: Run, compiled: CompiledWorkflow, scope: Scope) -> None:
        self._run, self.compiled, self.scope = run, compiled, scope
        self._count = len(compiled.graph.steps)
        self._delegated: dict[int, tuple[CompiledStep, str]] = {}
        self._items: dict[int, Items] = {}
        self._parts: dict[int, Message] = {}  # Outputs of items and iterations whose step has not ended.
        self.answer: Message | None = None
        self._next: tuple[CompiledWorkflow, Message | None] = (compiled, None)
        self._named: dict[str, tuple[CompiledStep, str]] = {}
        self._pins: Pins | None = None

    # --- what a step is

    def step(self, index: int) -> CompiledStep:
        """Returns the compiled step that a step is, or is a part of."""
        if index < self._count:
            return self.compiled.steps[index]
        delegated = self._delegated.get(index)
        return delegated[0] if delegated is not None else self.step(self._run.steps[index].spec.parent)

    def target(self, index: int) -> CompiledTarget:
        """Returns the method that a step calls next."""
        step = self._run.steps[index]
        if step.spec.role is StepRole.UNDO:
            undo = self.step(step.spec.parent).undo
            assert undo is not None
            return undo
        return self.step(index).targets[step.target]

    def pins(self, index: int) -> Pins:
        """Returns what decides which contracts can serve a step. What is delegated comes as it is, and may use all."""
        if index >= self._count:
            delegated = self._delegated.get(index)
            if delegated is not None:
                return Pins((delegated[1],))
            return self.pins(self._run.steps[index].spec.parent)
        if self._pins is None or self._pins.compiled is not self.compiled:
            self._pins = pins_of(self.compiled)
        return self._pins

    def bounding_step(self, index: int) -> int:
        """Returns the step whose limits and priority hold for the calls of a step: of a delegated one, who delegated
        it."""
        while index in self._delegated:
            index = self._run.steps[index].spec.parent
        return index

    def learn(self, index: int, step: CompiledStep, contract_digest: str) -> None:
        """Takes note of what a delegated step calls, before the core hears of it."""
        self._delegated[index] = (step, contract_digest)

    def unlearn(self, index: int) -> None:
        """Forgets a delegated step that the core has refused: another step will have its index."""
        self._delegated.pop(index, None)

    # --- what goes to a worker and comes back

    def build_request(self, index: int) -> bytes:
        """Builds the serialized request of a call. Errors: EvaluationFailed."""
        step = self._run.steps[index]
        if step.request is not None and step.target == 0:
            return step.request.data  # As it was delegated, or approved.
        return self.target(index).build_request(self.scope_of(index)).SerializeToString()

    def accepts(self, index: int, output: Message) -> bool:
        """Tells whether `expect` of a step holds for an output. Errors: EvaluationFailed."""
        if index >= self._count and self._run.steps[index].spec.role is StepRole.UNDO:
            return True
        return self.step(index).accepts(self.scope_of(index), output)

    def scope_of(self, index: int) -> Scope:
        """Returns what the bindings of a step can read."""
        if index < self._count:
            return self.scope
        spec = self._run.steps[index].spec
        match spec.role:
            case StepRole.ITEM:
                items = self._items_of(spec.parent)
                key = items.keys[spec.number] if items.keys is not None else None
                return self.scope.for_part(item=items.values[spec.number], index=spec.number, key=key)
            case StepRole.ITERATION:
                before = self._run.steps[spec.parent].children or []
                previous = self._part(before[spec.number - 2]) if spec.number > 1 else None
                return self.scope.for_part(previous=previous, iteration=spec.number)
            case StepRole.UNDO:
                return self.scope_of(spec.parent).for_part(output=self._output(spec.parent))
            case _:
                return self.scope

    def _items_of(self, index: int) -> Items:
        items = self._items.get(index)
        if items is None:
            compiled = self.step(index).items
            assert compiled is not None
            items = self._items[index] = compiled.read(self.scope)
        return items

    def _part(self, index: int) -> Message:
        """Returns the output of an item or iteration that has succeeded."""
        found = self._parts.get(index)
        if found is None:
            found = self._parts[index] = self._output(index)
        return found

    def _item(self, index: int) -> Message | None:
        """Returns the output of an item that has ended, None where it failed; it is kept no longer."""
        if self._run.steps[index].state is not StepState.SUCCEEDED:
            return None
        output = self._part(index)
        del self._parts[index]
        return output

    def _output(self, index: int) -> Message:
        output = self._run.steps[index].output
        assert output is not None
        return self.response_class(index).FromString(output.data)

    def response_class(self, index: int) -> type[Message]:
        """Returns the class of what one call or child run of a step answers."""
        child = self.step(index).child
        if child is not None and self._run.steps[index].spec.role is not StepRole.UNDO:
            return child.output_class
        return self.target(index).response_class

    # --- plan.Conditions

    def step_ended(self, step: int, state: StepState, failure: Failure | None, payload: Payload | None) -> None:
        """See plan.Conditions."""
        answer, self.answer = self.answer, None
        if step >= self._count:
            self._part_ended(step, state, answer, payload)
        elif state is StepState.SUCCEEDED:
            self.scope.set_succeeded(step, answer if answer is not None else self._give(step, payload))
        elif state is StepState.FAILED:
            assert failure is not None
            self.scope.set_failed(step, failure)
        else:
            self.scope.set_skipped(step)
        self._items.pop(step, None)

    def _part_ended(self, index: int, state: StepState, answer: Message | None, payload: Payload | None) -> None:
        role = self._run.steps[index].spec.role
        if state is StepState.SUCCEEDED and role in (StepRole.ITEM, StepRole.ITERATION) and payload is not None:
            self._parts[index] = answer if answer is not None else self.response_class(index).FromString(payload.data)

    def _give(self, index: int, payload: Payload | None) -> Message:
        """Makes the output of a step, as bindings read it, that no call has just given."""
        spec, compiled = self._run.steps[index].spec, self.step(index)
        children = self._run.steps[index].children or []
        if spec.map is not None and payload is None:
            assert compiled.items is not None
            items = self._items_of(index)
            outputs = [self._item(child) for child in children]
            return compiled.items.collect(items, outputs)
        if spec.repeat is not None and payload is None:
            output = self._part(children[-1])
            for child in children:
                self._parts.pop(child, None)
            return output
        assert payload is not None
        if spec.map is not None:
            assert compiled.items is not None
            return compiled.items.output_class.FromString(payload.data)
        if spec.targets and self._run.steps[index].target:
            return self.target(index).response_class.FromString(payload.data)
        assert compiled.output_class is not None
        return compiled.output_class.FromString(payload.data)

    def reopened(self) -> None:
        """See plan.Conditions. What the run goes on with was told by `go_on_with`."""
        compiled, run_input = self._next
        run, moved, before = self._run, self._run.moved, self.scope
        scope = Scope(len(compiled.steps), before.input if run_input is None else run_input)
        for old, new in moved.items():
            step = run.steps[new]
            if old >= self._count:
                continue
            output = before.outputs[old]
            if step.state is StepState.SUCCEEDED and output is not None:
                scope.set_succeeded(new, self._as_of(compiled, new, output))
            elif step.state is StepState.FAILED and step.failure is not None:
                scope.set_failed(new, step.failure)
            elif step.state is StepState.SKIPPED:
                scope.set_skipped(new)
        # A delegated step that begins anew has been moved by its number alone.
        places = {step.spec.id: index for index, step in enumerate(run.steps) if step.delegated is not None}
        self._delegated = {places[name]: known for name, known in self._named.items() if name in places}
        self._items, self._parts = {}, {}
        self.compiled, self._count, self.scope = compiled, len(compiled.steps), scope

    def begun_anew(self, steps: Sequence[int]) -> None:
        """See plan.Conditions."""
        for step in steps:
            self.scope.set_open(step)
            self._items.pop(step, None)
        self._parts.clear()

    def go_on_with(self, compiled: CompiledWorkflow, run_input: Message | None) -> None:
        """Says what the run is reopened with, right before it is: its revision, and a new input or None. The input that
        it has is read anew by another revision, whose types are its own. Errors: PackedInvalid."""
        if run_input is None and compiled is not self.compiled and self._run.input is not None:
            run_input = compiled.parse_input(to_any(self._run.input))
        self._next = compiled, run_input
        self._run.next_graph = compiled.graph if compiled is not self.compiled else None
        self._named = {self._run.steps[index].spec.id: known for index, known in self._delegated.items()}

    @staticmethod
    def _as_of(compiled: CompiledWorkflow, index: int, output: Message) -> Message:
        """Returns a kept output as a message of the revision that the run goes on with."""
        expected = output_class_of(compiled, index)
        if expected is None or isinstance(output, expected):
            return output
        return expected.FromString(output.SerializeToString())

    def holds(self, step: int) -> bool | Failure:
        """See plan.Conditions."""
        try:
            return self.step(step).condition(self.scope)
        except EvaluationFailed as error:
            return evaluation_failure(error)

    def output(self) -> Payload | Failure | None:
        """See plan.Conditions."""
        try:
            message = self.compiled.build_output(self.scope)
        except EvaluationFailed as error:
            return evaluation_failure(error)
        if message is None:
            return None
        data = message.SerializeToString()
        if len(data) > MAX_PAYLOAD_BYTES:
            return too_large("the output", len(data))
        return Payload(self.compiled.output_type, data)

    def count_items(self, step: int) -> int | Failure:
        """See plan.Conditions."""
        try:
            return len(self._items_of(step).values)
        except EvaluationFailed as error:
            return evaluation_failure(error)

    def is_done(self, step: int, iteration: int) -> bool | Failure:
        """See plan.Conditions."""
        number = self._run.steps[iteration].spec.number
        try:
            return self.step(step).is_done(self.scope, self._part(iteration), number)
        except EvaluationFailed as error:
            return evaluation_failure(error)

    def wake_time(self, step: int, now: int) -> int | Failure:
        """See plan.Conditions."""
        try:
            return self.step(step).wake_time(self.scope, now)
        except EvaluationFailed as error:
            return evaluation_failure(error)

    def request(self, step: int) -> Payload | Failure:
        """See plan.Conditions."""
        try:
            request = self.target(step).build_request(self.scope_of(step))
        except EvaluationFailed as error:
            return evaluation_failure(error)
        data = request.SerializeToString()
        if len(data) > MAX_PAYLOAD_BYTES:
            return too_large("the request", len(data))
        return Payload(request.DESCRIPTOR.full_name, data)

    def child_run(self, step: int, now: int) -> tuple[RunAwaited, Payload | None] | Failure:
        """See plan.Conditions."""
        child = self.step(step).child
        assert child is not None
        try:
            given = child.build_input(self.scope_of(step))
        except EvaluationFailed as error:
            return evaluation_failure(error)
        payload = None
        if given is not None:
            data = given.SerializeToString()
            if len(data) > MAX_PAYLOAD_BYTES:
                return too_large("the input of the child run", len(data))
            payload = Payload(child.input_type, data)
        return RunAwaited(str(machine.new_run_id(now)), child.workflow, child.revision), payload
