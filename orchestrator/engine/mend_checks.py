"""What must hold before a run is mended: that a revision can take over what is kept, that an output fits its step."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from baton.v1 import workflow_pb2
from google.protobuf import any_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.packed import PackedInvalid, unpack
from orchestrator.domain import errors
from orchestrator.domain.events import Payload
from orchestrator.domain.ids import RevisionKey
from orchestrator.domain.plan import in_the_way
from orchestrator.domain.retrying import would_forget_undo
from orchestrator.domain.run import Run
from orchestrator.domain.states import RunState, StepState
from orchestrator.domain.workflow import StepRole
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.data import output_class_of
from orchestrator.engine.limits import MAX_PAYLOAD_BYTES
from orchestrator.engine.live import LiveRun
from orchestrator.engine.messages import to_any

MAY_BE_MISSING = "OUTPUT_MAY_BE_MISSING"

NAMED = 20
"""Most steps that an error names."""


def find_step(live: LiveRun, step: str) -> int:
    """Finds a step by its id. Errors: StepNotFound."""
    index = live.run.indexes.get(step)
    if index is None:
        raise errors.StepNotFound(f"step: the run has no step {step}; list its steps with ListRunSteps")
    return index


def new_input(compiled: CompiledWorkflow, given: any_pb2.Any) -> tuple[Message | None, Payload]:
    """Reads an input that is given in place of another. Errors: PayloadTooLarge, InputInvalid."""
    if len(given.value) > MAX_PAYLOAD_BYTES:
        raise errors.PayloadTooLarge(f"input: {len(given.value)} bytes; the limit is {MAX_PAYLOAD_BYTES}")
    try:
        message = compiled.parse_input(given)
    except PackedInvalid as error:
        path = f"input.{error.field}" if error.field else "input"
        fault = errors.FieldFault(path, "INPUT_INVALID", error.message)
        raise errors.InputInvalid(f"{path}: {error.message}", faults=[fault]) from None
    return message, Payload(compiled.input_type, given.value)


def require_compatible(live: LiveRun, compiled: CompiledWorkflow, reset: Collection[str], *, new_input: bool) -> None:
    """Refuses another revision where something that is kept does not fit it: the input, or the output of a step that
    does not begin anew. Errors: RevisionIncompatible, which names each."""
    run, faults = live.run, []
    if not new_input:
        try:
            compiled.parse_input(to_any(run.input) if run.input is not None else None)
        except PackedInvalid as error:
            path = f"input.{error.field}" if error.field else "input"
            faults.append(errors.FieldFault(path, "INPUT_INVALID", _kept(run, compiled, error)))
    for spec in compiled.graph.steps:
        before = run.indexes.get(spec.id)
        if before is None or before >= len(run.graph.steps) or spec.id in reset:
            continue
        if run.steps[before].state is StepState.SUCCEEDED:
            fault = _output_fault(live, before, output_class_of(compiled, spec.index))
            if fault:
                faults.append(errors.FieldFault(f"steps.{spec.id}.output", "TYPE_MISMATCH", fault))
    if faults:
        raise errors.RevisionIncompatible(
            f"revision: the run cannot go on with {compiled.revision}: {faults[0].path}: {faults[0].message}",
            faults=faults,
        )


def _kept(run: Run, compiled: CompiledWorkflow, error: PackedInvalid) -> str:
    """Says why the input of a run does not fit a revision, and what to do: none can be taken away."""
    if compiled.input_descriptor is None and run.input is not None:
        kept = run.input.type_name
        return (
            f"the revision takes no input, and the run keeps its own, a {kept}; go on with a revision that takes a "
            f"{kept}, or submit a new run"
        )
    return f"{error.message}; give a new input"


def _output_fault(live: LiveRun, index: int, expected: type[Message] | None) -> str:
    kept = live.data.scope.outputs[index]
    if kept is None or expected is None:
        return ""
    if not _is_same(cast(Descriptor, kept.DESCRIPTOR), cast(Descriptor, expected.DESCRIPTOR)):
        return f"the output that is kept is a {kept.DESCRIPTOR.full_name}, not a {expected.DESCRIPTOR.full_name}"
    try:
        expected.FromString(kept.SerializeToString())
    except DecodeError:
        return f"the output that is kept cannot be read as the {expected.DESCRIPTOR.full_name} of the revision"
    return ""


def _is_same(one: Descriptor, other: Descriptor) -> bool:
    """Tells whether two types have the same name; the outputs of two maps, whether those of their items have."""
    if one.full_name == other.full_name:
        return True
    elements = [
        [(field.number, field.message_type.full_name) for field in each.fields if field.message_type is not None]
        for each in (one, other)
        if each.file.name.startswith("baton/map/")
    ]
    return len(elements) == 2 and elements[0] == elements[1]


def substitute(live: LiveRun, index: int, given: any_pb2.Any) -> Payload:
    """Reads the output that stands in the place of a step's own. Errors: PayloadTooLarge, SubstituteInvalid."""
    if len(given.value) > MAX_PAYLOAD_BYTES:
        raise errors.PayloadTooLarge(f"output: {len(given.value)} bytes; the limit is {MAX_PAYLOAD_BYTES}")
    spec = live.run.steps[index].spec
    if spec.role is StepRole.WORKFLOW:
        expected = output_class_of(live.compiled, index)
    else:
        expected = live.data.response_class(index)
    assert expected is not None
    try:
        unpack(given, expected, live.compiled.requirements, taker=f"step {spec.id} gives", what="output")
    except PackedInvalid as error:
        fault = errors.FieldFault("output", "SUBSTITUTE_INVALID", error.message)
        raise errors.SubstituteInvalid(f"output: {error.message}", faults=[fault]) from None
    return Payload(expected.DESCRIPTOR.full_name, given.value)


async def require_dispensable(catalogue: Catalogue, live: LiveRun, index: int) -> None:
    """Refuses to skip a step whose output something cannot do without: as the check of a workflow would in which the
    step has a condition. Errors: OutputNeeded, which names where it is read; StepNotMendable."""
    run, spec = live.run, live.run.steps[index].spec
    if spec.role is not StepRole.WORKFLOW:
        raise errors.StepNotMendable(f"output: give one; {spec.id} belongs to a step that needs what it gives")
    if spec.has_condition:
        return
    changed = workflow_pb2.Workflow()
    changed.CopyFrom(live.compiled.definition)
    changed.steps[index].when = "1 > 2"
    key = RevisionKey(live.key.namespace, run.workflow, run.revision)
    violations = await catalogue.violations_of(key, live.compiled, changed)
    faults = [
        errors.FieldFault(one.path, one.reason, one.message) for one in violations if one.reason == MAY_BE_MISSING
    ]
    if faults:
        raise errors.OutputNeeded(
            f"output: step {spec.id} cannot be skipped without one: it is read at {faults[0].path}", faults=faults
        )


def require_step(live: LiveRun, index: int) -> None:
    """Refuses what is no step of the workflow. Errors: StepNotMendable."""
    spec = live.run.steps[index].spec
    if spec.role is not StepRole.WORKFLOW:
        parent = live.run.steps[spec.parent].spec.id
        raise errors.StepNotMendable(f"step: {spec.id} belongs to {parent}; name {parent}", metadata={"step": spec.id})


def require_ended_before(live: LiveRun, index: int) -> None:
    """Refuses to let an ended step of a run that goes on begin anew, where it is too late for that. Errors:
    StepNotMendable, RunActive, StepsInTheWay."""
    run, spec = live.run, live.run.steps[index].spec
    require_step(live, index)
    if run.state is RunState.UNDOING:
        raise errors.RunActive(
            f"the run is being undone: wait for its end; {spec.id} can be retried then",
            metadata={"run_id": live.run_id},
        )
    if would_forget_undo(run, index):
        raise errors.StepNotMendable(
            f"step: {spec.id} has succeeded, and what it did may have to be taken back: cancel the run, which does "
            "that, and retry the step then",
            metadata={"step": spec.id},
        )
    steps = ", ".join(run.steps[other].spec.id for other in in_the_way(run, index)[:NAMED])
    if steps:
        raise errors.StepsInTheWay(
            f"step: {spec.id} has ended, and what follows from that has begun: {steps}. Wait for the run's end, or "
            "cancel it, and retry the step then",
            metadata={"run_id": live.run_id, "step": spec.id, "steps": steps},
        )


def require_its_turn(live: LiveRun, index: int) -> None:
    """Refuses to let a step be tried that is not to be tried yet, or is no call. Errors: StepNotMendable."""
    step = live.run.steps[index]
    if step.state is StepState.BLOCKED:
        why = "its turn has not come: it waits for other steps"
    elif step.state is StepState.WAITING:
        why = "it waits, but not for another attempt: SkipStep ends the wait, with an output or without"
    else:
        return
    raise errors.StepNotMendable(f"step: {step.spec.id}: {why}", metadata={"step": step.spec.id})


def require_round(run: Run, wished: int) -> None:
    """Refuses a round that a run has not come to. Errors: InvalidRequest."""
    if wished > run.round:
        text = f"the run is in round {run.round}; give that, or leave it out"
        raise errors.InvalidRequest(f"round: {text}", faults=[errors.FieldFault("round", "INVALID_REQUEST", text)])


def require_reopenable(run: Run) -> None:
    """Refuses a run that has succeeded, or belongs to another. Errors: RunSucceeded, ChildRun."""
    if run.failure is None:
        raise errors.RunSucceeded("the run has succeeded: there is nothing to mend; to run parts of it again, fork it")
    if run.parent_run_id:
        raise errors.ChildRun(
            f"the run belongs to step {run.parent_step} of run {run.parent_run_id}; mend that one",
            metadata={"parent_run_id": run.parent_run_id, "parent_step": run.parent_step},
        )
