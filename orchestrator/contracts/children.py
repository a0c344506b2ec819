"""Workflows that steps run: which revision each is, its types in the types of the parent, its input.

An applied workflow is handed in compiled; nothing is looked up here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from baton.v1 import workflow_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from orchestrator.contracts.bindings import BindingCompiler, Place
from orchestrator.contracts.compiled import CompiledChild, CompiledWorkflow
from orchestrator.contracts.kinds import kind_of
from orchestrator.contracts.violations import Report, closest
from orchestrator.domain.workflow import StepKind

NESTING_LIMIT = 8
"""Workflows that run each other, one in the other."""

CHILDREN_LIMIT = 100
"""Workflows and revisions that the steps of one workflow run."""

EMPTY = "google.protobuf.Empty"

Applied = Mapping[tuple[str, str], CompiledWorkflow]
"""Applied workflows by name and revision; that of no revision is the newest."""


def children_named(workflow: workflow_pb2.Workflow) -> Iterator[tuple[str, str]]:
    """Yields name and revision, "" for the newest, of each workflow that a step runs, at most CHILDREN_LIMIT."""
    named = dict.fromkeys(
        (step.run_workflow.workflow, step.run_workflow.revision)
        for step in workflow.steps
        if step.run_workflow.workflow and kind_of(step) is StepKind.RUN_WORKFLOW
    )
    yield from islice(named, CHILDREN_LIMIT)


@dataclass(slots=True)
class Children:
    """The workflows that the steps of one workflow run, by the index of the step; unknown ones are left out."""

    by_step: dict[int, CompiledWorkflow] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Returns how deep the deepest of them nests workflows; 0 without any."""
        return max((child.depth for child in self.by_step.values()), default=0)

    def sources(self) -> list[TypeSource]:
        """Returns the files of the types of their inputs and outputs, once for each workflow and revision."""
        found: dict[tuple[str, str], TypeSource] = {}
        for index, child in self.by_step.items():
            key = (child.definition.name, child.revision)
            if key not in found:
                roots = (child.input_descriptor, _output_descriptor(child))
                files = list(_files(root for root in roots if root is not None))
                found[key] = TypeSource(f"the workflow {' '.join(key)}", f"steps[{index}].run_workflow", files)
        return list(found.values())


@dataclass(frozen=True, slots=True)
class TypeSource:
    """Files that a workflow brings along: what to call their owner in a conflict, and the path of who uses them."""

    owner: str
    path: str
    files: Sequence[FileDescriptorProto]


def find_children(workflow: workflow_pb2.Workflow, applied: Applied, report: Report) -> Children:
    """Finds the workflows that the steps run, reporting those that are unknown, and a workflow that runs itself."""
    found, known = Children(), set(children_named(workflow))
    for index, step in enumerate(workflow.steps):
        if kind_of(step) is not StepKind.RUN_WORKFLOW:
            continue
        path, name, revision = f"steps[{index}].run_workflow", step.run_workflow.workflow, step.run_workflow.revision
        if workflow.name and name == workflow.name:
            report.add(
                f"{path}.workflow",
                "CYCLE",
                f"the workflow runs itself: {name} -> {name}; repeat a step, or map over items, in its place",
            )
            continue
        child = applied.get((name, revision))
        if name and (name, revision) not in known:
            report.add(
                f"{path}.workflow",
                "INVALID_SETTING",
                f"the steps run more than {CHILDREN_LIMIT} workflows; give some of them a workflow of their own",
            )
        elif child is None:
            _report_unknown(name, revision, path, applied, report)
        elif child.depth >= NESTING_LIMIT:
            report.add(
                f"{path}.workflow",
                "INVALID_SETTING",
                f"{name} runs workflows {child.depth} deep already; workflows run each other at most {NESTING_LIMIT} "
                "deep",
            )
        else:
            found.by_step[index] = child
    return found


def _report_unknown(name: str, revision: str, path: str, applied: Applied, report: Report) -> None:
    if revision:
        report.add(
            f"{path}.revision",
            "UNKNOWN_WORKFLOW",
            f"the workflow {name} has no revision {revision} that passes the checks; list its revisions with "
            "ListWorkflowRevisions, or leave the revision out for the newest",
        )
        return
    hint = closest(name, {known for known, _ in applied})
    report.add(
        f"{path}.workflow",
        "UNKNOWN_WORKFLOW",
        f"no workflow {name} that passes the checks is applied; apply it with ApplyWorkflow{hint}",
    )


def pin_children(workflow: workflow_pb2.Workflow, children: Children) -> workflow_pb2.Workflow:
    """Returns the workflow with the revision of every workflow that it runs."""
    if all(workflow.steps[index].run_workflow.revision for index in children.by_step):
        return workflow
    pinned = workflow_pb2.Workflow()
    pinned.CopyFrom(workflow)
    for index, child in children.by_step.items():
        pinned.steps[index].run_workflow.revision = child.revision
    return pinned


def compile_child(
    step: workflow_pb2.Step, child: CompiledWorkflow, bindings: BindingCompiler, place: Place
) -> CompiledChild | None:
    """Compiles the run of a workflow; the path of `place` is what stands before `request`."""
    name = step.run_workflow.workflow
    output = bindings.types.find_message(child.output_type or EMPTY)
    builder = None
    if not child.input_type:
        if step.request or step.HasField("whole_request"):
            path = f"{place.path}whole_request" if step.HasField("whole_request") else f"{place.path}request"
            bindings.report.add(path, "INVALID_BINDING", f"the workflow {name} takes no input; leave the bindings out")
    else:
        descriptor = bindings.types.find_message(child.input_type)
        builder = bindings.request(step, descriptor, place)
        if builder is None:
            return None
    if output is None:
        return None
    return CompiledChild(
        name,
        child.revision,
        child.input_type,
        child.output_type,
        bindings.types.message_class(output),
        builder,
    )


def _output_descriptor(child: CompiledWorkflow) -> Descriptor | None:
    return child.types.find_message(child.output_type) if child.output_type else None


def _files(roots: Iterable[Descriptor]) -> Iterator[FileDescriptorProto]:
    """Yields the files of these messages and those that they import, without services, imports first."""
    seen: set[str] = set()
    pending = [(root.file, False) for root in roots]
    while pending:
        file, imported = pending.pop()
        if imported:
            proto = FileDescriptorProto.FromString(file.serialized_pb)
            proto.ClearField("service")
            yield proto
        elif file.name not in seen:
            seen.add(file.name)
            pending.append((file, True))
            pending.extend((one, False) for one in file.dependencies)
