"""Workflows of the simulation: one contract, and a pool of workflows, each drawn from its number alone.

Checking and compiling give the same for the same arguments, so that they are done once a process.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from random import Random
from typing import Any

from baton.v1 import workflow_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2

from orchestrator.contracts.children import Applied
from orchestrator.contracts.compile import Checked, check_workflow
from orchestrator.contracts.descriptors import Contract, read_contract
from orchestrator.domain.ids import RevisionKey
from orchestrator.engine.catalogue import restore_contract
from orchestrator.engine.catalogue_ports import ContractRow, RevisionRow

NAMESPACES = ("north", "south")
POOL = 64
LEAVES = 4
EDITIONS = 4
"""Revisions of a workflow that are applied one after the other, where somebody applies new ones."""
METHODS = ("Work", "Safe", "Other", "TakeBack", "Lead")
WORK, SAFE, OTHER, TAKE_BACK, LEAD = (f"sim.v1.Lab/{name}" for name in METHODS)
APPROVERS = ("bob", "eve")
KEY_LIMIT = "customers"
"""Limit of the scope KEY that steps name."""
JOB, DONE = "sim.v1.Job", "sim.v1.Done"


def _contract_files() -> Sequence[descriptor_pb2.FileDescriptorProto]:
    file = descriptor_pb2.FileDescriptorProto(name="sim/v1/lab.proto", package="sim.v1", syntax="proto3")
    text, message, repeated, optional = 9, 11, 3, 1
    file.message_type.add(name="Item").field.add(name="text", number=1, type=text, label=optional)
    for name in ("Job", "Done"):
        made = file.message_type.add(name=name)
        made.field.add(name="text", number=1, type=text, label=optional)
        made.field.add(name="items", number=2, type=message, label=repeated, type_name=".sim.v1.Item")
        made.field.add(name="number", number=3, type=5, label=optional)
    service = file.service.add(name="Lab")
    for name in METHODS:
        method = service.method.add(name=name, input_type=f".{JOB}", output_type=f".{DONE}")
        if name == "Safe":
            method.options.idempotency_level = descriptor_pb2.MethodOptions.IDEMPOTENT
    return [file]


def _done_class() -> Any:
    pool = descriptor_pool.DescriptorPool()
    for file in _contract_files():
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(DONE))


Done = _done_class()
"""The class of answers; requests have the same fields."""


@functools.cache
def contract_row() -> ContractRow:
    """The contract of every worker."""
    contract = read_contract(_contract_files())
    return ContractRow(contract.digest, contract.files, tuple(one.name for one in contract.services))


@functools.cache
def restored(digest: str) -> Contract:
    """The contract in its checked form."""
    assert digest == contract_row().digest
    return restore_contract(contract_row())


def restore(row: ContractRow) -> Contract:
    """Stands for `restore_contract`."""
    return restored(row.digest)


_checked: dict[tuple[bytes, tuple[str, ...]], Checked] = {}


def check(
    workflow: workflow_pb2.Workflow, contracts: Sequence[Any], *, require_name: bool = False, applied: Applied
) -> Checked:
    """Stands for `check_workflow`: remembers what it gave."""
    children = tuple(compiled.revision for _, compiled in sorted(applied.items()))
    key = (workflow.SerializeToString(deterministic=True), children)
    found = _checked.get(key)
    if found is None:
        found = _checked[key] = check_workflow(workflow, contracts, require_name=require_name, applied=applied)
    return found


@functools.cache
def leaf(number: int) -> workflow_pb2.Workflow:
    """A workflow that steps of others run."""
    return _drawn(f"leaf-{number}", Random(9_000 + number), ())


@functools.cache
def pooled(number: int) -> workflow_pb2.Workflow:
    """A workflow of the pool."""
    return _drawn(f"flow-{number}", Random(number), tuple(f"leaf-{each}" for each in range(LEAVES)))


def _applied(workflow: workflow_pb2.Workflow) -> Applied:
    found = {}
    for step in workflow.steps:
        child = step.run_workflow
        if child.workflow:
            compiled = checked(leaf(int(child.workflow.removeprefix("leaf-")))).compiled
            assert compiled is not None
            found[child.workflow, child.revision] = compiled
    return found


def checked(workflow: workflow_pb2.Workflow) -> Checked:
    """Checks a workflow of the pool."""
    contracts = [("lab", restored(contract_row().digest))]
    return check(workflow, contracts, applied=_applied(workflow))


@functools.cache
def grown(number: int) -> workflow_pb2.Workflow:
    """A workflow of the pool whose steps delegate, are to be approved, and name limits."""
    return _drawn(f"grown-{number}", Random(500 + number), tuple(f"leaf-{each}" for each in range(LEAVES)), grows=True)


def edition_of(workflow: workflow_pb2.Workflow, edition: int) -> workflow_pb2.Workflow:
    """Another revision of a workflow of the pool, which does the same."""
    found = workflow_pb2.Workflow()
    found.CopyFrom(workflow)
    found.run_timeout.nanos += edition
    return found


_revision_rows: dict[tuple[str, str, int], RevisionRow] = {}


def revision_row(namespace: str, workflow: workflow_pb2.Workflow) -> RevisionRow:
    """The stored revision of a workflow of the pool, of an edition of one, or of a leaf."""
    key = namespace, workflow.name, workflow.run_timeout.nanos
    row = _revision_rows.get(key)
    if row is None:
        row = _revision_rows[key] = _revision_row(namespace, workflow)
    return row


def _revision_row(namespace: str, workflow: workflow_pb2.Workflow) -> RevisionRow:
    compiled = checked(workflow).compiled
    assert compiled is not None
    definition = compiled.definition
    return RevisionRow(
        RevisionKey(namespace, definition.name, compiled.revision),
        definition.SerializeToString(deterministic=True),
        compiled.contract_digests,
        1,
    )


def _drawn(name: str, draws: Random, leaves: Sequence[str], *, grows: bool = False) -> workflow_pb2.Workflow:
    """Draws workflows until one passes the check."""
    for _ in range(200):
        workflow = _Drawing(name, draws, leaves, grows).workflow
        _drop_useless_defaults(workflow)
        if checked(workflow).compiled is not None:
            return workflow
    raise AssertionError(f"{name}: no workflow passes: {checked(workflow).violations}")


def _drop_useless_defaults(workflow: workflow_pb2.Workflow) -> None:
    """Takes the default values away that the check says are of no use."""
    for violation in checked(workflow).violations:
        if violation.reason == "INVALID_BINDING" and "never used" in violation.message:
            for index, step in enumerate(workflow.steps):
                if violation.path.startswith(f"steps[{index}]"):
                    step.request["text"].ClearField("default_value")
            if violation.path.startswith("output"):
                workflow.output["text"].ClearField("default_value")


def _seconds(seconds: float) -> Duration:
    found = Duration()
    found.FromMicroseconds(round(seconds * 1_000_000))
    return found


class _Drawing:
    """Draws one workflow."""

    def __init__(self, name: str, draws: Random, leaves: Sequence[str], grows: bool) -> None:
        self._draws, self._leaves, self._grows = draws, leaves, grows
        self.workflow = workflow_pb2.Workflow(name=name, input_type=JOB, output_type=DONE)
        self.workflow.run_timeout.CopyFrom(_seconds(draws.choice((10.0, 20.0, 180.0))))
        for index in range(draws.randint(1, 5 if leaves else 2)):
            self._add_step(index)
        last = self.workflow.steps[-1].id
        output = self.workflow.output["text"]
        output.path = f"steps.{last}.output.text" if _gives_text(self.workflow.steps[-1]) else "input.text"
        if output.path != "input.text":
            output.default_value.string_value = ""

    def _chance(self, part: float) -> bool:
        return self._draws.random() < part

    def _add_step(self, index: int) -> None:
        draws = self._draws
        step = self.workflow.steps.add(id=f"s{index}")
        kinds = ["call"] * 12 + ["map"] * 3 + ["repeat"] * 2 + ["sleep"] * 2 + ["signal"] * 2
        if self._leaves:
            kinds += ["child"] * 2
        if self._grows:
            kinds += ["lead"] * 10 + ["asked"] * 5
        kind = draws.choice(kinds)
        earlier = [one for one in self.workflow.steps[:index] if self._chance(0.5)]
        step.after.extend(one.id for one in earlier)
        getattr(self, f"_{kind}")(step, earlier)
        if self._chance(0.15):
            step.step_timeout.CopyFrom(_seconds(draws.choice((6.0, 9.0))))
        if index and self._chance(0.1):
            step.when = "input.number > 0"
        if self._chance(0.3):
            step.on_failure.add()
        if self._grows and step.method and self._chance(0.4):
            step.limits.add(limit=KEY_LIMIT, key="input.text" if self._chance(0.5) else "")

    def _call(self, step: workflow_pb2.Step, earlier: Sequence[workflow_pb2.Step]) -> None:
        draws = self._draws
        step.method = draws.choice((WORK, WORK, SAFE))
        binding = step.request["text"]
        readable = [one for one in earlier if _gives_text(one)]
        if readable and self._chance(0.6):
            binding.path = f"steps.{draws.choice(readable).id}.output.text"
            binding.default_value.string_value = "nothing"
        else:
            binding.path = "input.text"
        self._retries(step)
        if self._chance(0.2):
            fallback = step.fallback.add(method=OTHER)
            fallback.retry.max_attempts = 2
            fallback.retry.max_backoff.CopyFrom(_seconds(5.0))
        if self._chance(0.1):
            step.delivery = workflow_pb2.DELIVERY_AT_MOST_ONCE
        if self._chance(0.1):
            step.undo.method = TAKE_BACK
            step.undo.attempt_timeout.CopyFrom(_seconds(2.0))
            step.undo.request["text"].path = "input.text"

    def _retries(self, step: workflow_pb2.Step) -> None:
        draws = self._draws
        step.retry.max_attempts = draws.randint(1, 4)
        step.retry.initial_backoff.CopyFrom(_seconds(draws.choice((0.1, 0.5, 4.0))))
        step.retry.max_backoff.CopyFrom(_seconds(5.0))
        if self._chance(0.6):
            step.retry.codes.extend((code_pb2.UNAVAILABLE, code_pb2.DEADLINE_EXCEEDED))
        step.attempt_timeout.CopyFrom(_seconds(draws.choice((1.0, 3.0))))
        if self._chance(0.1):
            step.queue_timeout.CopyFrom(_seconds(5.0))

    def _map(self, step: workflow_pb2.Step, earlier: Sequence[workflow_pb2.Step]) -> None:
        step.method = SAFE
        step.map.items.path = "input.items"
        step.map.max_parallel = self._draws.randint(1, 3)
        step.map.max_failed = self._draws.choice((0, 2))
        step.request["text"].path = "item.text"
        self._retries(step)

    def _lead(self, step: workflow_pb2.Step, earlier: Sequence[workflow_pb2.Step]) -> None:
        step.method = LEAD
        step.request["text"].path = "input.text"
        self._retries(step)
        step.attempt_timeout.CopyFrom(_seconds(30.0))

    def _asked(self, step: workflow_pb2.Step, earlier: Sequence[workflow_pb2.Step]) -> None:
        self._call(step, earlier)
        step.approval.timeout.CopyFrom(_seconds(self._draws.choice((5.0, 10.0))))
        if self._chance(0.5):
            step.approval.approvers.append(APPROVERS[0])

    def _repeat(self, step: workflow_pb2.Step, earlier: Sequence[workflow_pb2.Step]) -> None:
        step.method = WORK
        step.repeat.until = "iteration >= 3"
        step.repeat.max_iterations = 5
        step.repeat.interval.CopyFrom(_seconds(self._draws.choice((0.0, 0.5))))
        step.request["text"].path = "input.text"
        self._retries(step)

    def _sleep(self, step: workflow_pb2.Step, earlier: Sequence[workflow_pb2.Step]) -> None:
        step.sleep.duration.literal.string_value = self._draws.choice(("0.5s", "3s", "5.5s"))

    def _signal(self, step: workflow_pb2.Step, earlier: Sequence[workflow_pb2.Step]) -> None:
        step.wait_signal.signal = self._draws.choice(("go", "stop"))
        step.wait_signal.type = JOB
        step.wait_signal.timeout.CopyFrom(_seconds(self._draws.choice((4.0, 6.0))))

    def _child(self, step: workflow_pb2.Step, earlier: Sequence[workflow_pb2.Step]) -> None:
        name = self._draws.choice(self._leaves)
        compiled = checked(leaf(int(name.removeprefix("leaf-")))).compiled
        assert compiled is not None
        step.run_workflow.workflow, step.run_workflow.revision = name, compiled.revision
        step.whole_request.path = "input"


def _gives_text(step: workflow_pb2.Step) -> bool:
    return not (step.HasField("map") or step.HasField("sleep"))


def signals_of(workflow: workflow_pb2.Workflow) -> Sequence[str]:
    """Names of the signals that a workflow waits for."""
    return [step.wait_signal.signal for step in workflow.steps if step.wait_signal.signal]
