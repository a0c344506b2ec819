"""Checks a workflow against contracts and compiles it: either all its violations, or what the engine runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from baton.v1 import workflow_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor

from orchestrator.contracts.assembly import Assembled, assemble
from orchestrator.contracts.bindings import BindingCompiler, Place, expressions_in
from orchestrator.contracts.builders import Builder
from orchestrator.contracts.children import EMPTY, Applied, find_children, pin_children
from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.descriptors import (
    Contract,
    TypePool,
)
from orchestrator.contracts.expressions import ExpressionCompiler, Use
from orchestrator.contracts.graph import (
    Wiring,
    check_missing_outputs,
    check_reachability,
    find_cycles,
    wire,
)
from orchestrator.contracts.items import MapCompiler
from orchestrator.contracts.kinds import check_kinds, is_mapped, kind_of
from orchestrator.contracts.paths import Names
from orchestrator.contracts.pinning import merge_pinned, pin
from orchestrator.contracts.required import Requirements
from orchestrator.contracts.settings import check_timeouts, duration_us
from orchestrator.contracts.steps import StepCompiler, StepTypes, Visible, uses_of, visible_in
from orchestrator.contracts.violations import Report, Violation, limited_hints
from orchestrator.domain.workflow import StepKind

NONE_APPLIED: Applied = {}


@dataclass(frozen=True, slots=True)
class Edge:
    """One dependency between steps, by id; `data` is false where only `after` orders the two."""

    from_step: str
    to_step: str
    data: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found. `compiled` is None where there are violations."""

    violations: tuple[Violation, ...]
    compiled: CompiledWorkflow | None
    edges: tuple[Edge, ...]


def check_workflow(
    workflow: workflow_pb2.Workflow,
    contracts: Sequence[tuple[str, Contract]],
    *,
    require_name: bool = False,
    applied: Applied = NONE_APPLIED,
) -> Checked:
    """Checks a workflow against the contracts (worker name, contract) of its namespace and compiles it.

    Only the contracts of workers that serve a method used, or that alone define the input or output type or that of a
    signal, are merged and pinned. With `require_name`, a workflow without a name is a violation. `applied` are the
    workflows that it runs; the revision of each is written into the compiled definition. Raises nothing for a wrong
    workflow.
    """
    with limited_hints():
        return _Check(workflow, contracts, require_name, applied).run()


class _Check:
    def __init__(
        self,
        workflow: workflow_pb2.Workflow,
        contracts: Sequence[tuple[str, Contract]],
        require_name: bool,
        applied: Applied,
    ) -> None:
        self.contracts = contracts
        self.report = Report()
        self.children = find_children(workflow, applied, self.report)
        self.workflow = pin_children(workflow, self.children)
        self.steps: dict[str, int] = {}
        for index, step in enumerate(workflow.steps):
            self.steps.setdefault(step.id, index)
        if require_name and not workflow.name:
            self.report.add("name", "INVALID_SETTING", "a workflow that is applied needs a name")

    def run(self) -> Checked:
        check_kinds(self.workflow, self.report)
        wiring = wire(self.workflow, self.steps, self.report)
        check_timeouts(self.workflow, self.report)
        pinned = pin(self.workflow, self.contracts, self.report)
        types = merge_pinned(pinned, self.workflow, self.children.sources(), self.report)
        if types is None:
            return Checked(self.report.violations(), None, ())
        input_type = self._message_type(self.workflow.input_type, "input_type", types)
        output_type = self._message_type(self.workflow.output_type, "output_type", types)
        requirements = Requirements()
        steps, bindings = self._steps(types, input_type, requirements, wiring)
        output = self._output(bindings, output_type)
        edges, data_edges = self._edges(wiring)
        if not find_cycles(edges, wiring.ids, self.report):
            check_missing_outputs(wiring, self.report)
            check_reachability(wiring, self.report)
        listed = tuple(
            Edge(wiring.ids[before], wiring.ids[index], before in data_edges[index])
            for index, found in enumerate(edges)
            for before in sorted(found)
        )
        violations = self.report.violations()
        if violations:
            return Checked(violations, None, listed)
        digests = tuple(sorted({contract.digest for contract in pinned.parts.values()}))
        compiled = CompiledWorkflow(
            graph=assemble(self.workflow, self.steps, wiring, edges, steps),
            definition=self.workflow,
            revision=_revision(self.workflow, digests),
            contract_digests=digests,
            input_type=self.workflow.input_type,
            output_type=self.workflow.output_type,
            run_timeout_us=duration_us(self.workflow.run_timeout) if self.workflow.HasField("run_timeout") else None,
            types=types,
            requirements=requirements,
            input_descriptor=input_type,
            steps=tuple(one.step for one in steps),
            output=output,
            depth=self.children.depth + 1,
        )
        return Checked((), compiled, listed)

    def _steps(
        self, types: TypePool, input_type: Descriptor | None, requirements: Requirements, wiring: Wiring
    ) -> tuple[list[Assembled], BindingCompiler]:
        """Compiles the steps; what else reads them goes on with the same compiler of bindings."""
        found = self._step_types(types)
        results = [one.result for one in found]
        outputs = [None if is_mapped(step) else results[index] for index, step in enumerate(self.workflow.steps)]
        failure_type = types.find_message("baton.v1.Failure")
        assert failure_type is not None
        names = Names(
            input_type,
            self.steps,
            outputs,
            failure_type,
            types.message_class(failure_type),
            bool(self.workflow.input_type),
        )
        expressions = ExpressionCompiler(types, names)
        bindings = BindingCompiler(types, names, wiring.possible, requirements, expressions, self.report, wiring.sites)
        mapped = [index for index, step in enumerate(self.workflow.steps) if is_mapped(step)]
        maps = MapCompiler(self.workflow, bindings, results, outputs).compile(mapped)
        visible = [
            visible_in(step, results[index], maps.get(index), types) for index, step in enumerate(self.workflow.steps)
        ]
        expressions.prepare(self._uses(visible))
        compiler = StepCompiler(self.workflow, bindings, wiring, self.report, maps, self.children)
        steps = [compiler.compile(index, one, outputs[index], visible[index]) for index, one in enumerate(found)]
        return steps, bindings

    def _uses(self, visible: Sequence[Visible]) -> Iterable[Use]:
        for index, step in enumerate(self.workflow.steps):
            yield from uses_of(step, index, visible[index])
        for binding in (*self.workflow.output.values(), self.workflow.whole_output):
            yield from (Use(source, None) for source in expressions_in(binding))

    def _message_type(self, name: str, path: str, types: TypePool) -> Descriptor | None:
        if not name:
            return None
        found = types.find_message(name)
        if found is None:
            hint = types.closest_message(name)
            self.report.add(
                path,
                "UNKNOWN_TYPE",
                f"no worker's contract and no descriptor of the workflow has {name}{hint}",
            )
        elif found.GetOptions().map_entry:
            self.report.add(path, "UNKNOWN_TYPE", f"{name} is the entry of a map, which no field and no run can hold")
            return None
        return found

    def _step_types(self, types: TypePool) -> list[StepTypes]:
        """Finds the methods and outputs of the steps, reporting what is unknown or streams."""
        signals: dict[str, tuple[str, int]] = {}
        found = []
        for index, step in enumerate(self.workflow.steps):
            path = f"steps[{index}]"
            methods = [self._unary(types, step.method, f"{path}.method")]
            for number, fallback in enumerate(step.fallback):
                methods.append(self._unary(types, fallback.method, f"{path}.fallback[{number}].method"))
            undo = self._unary(types, step.undo.method, f"{path}.undo.method")
            kind = kind_of(step)
            result = methods[0].output_type if methods[0] is not None else None
            if kind is StepKind.RUN_WORKFLOW:
                child = self.children.by_step.get(index)
                result = types.find_message(child.output_type or EMPTY) if child is not None else None
            elif kind is StepKind.SLEEP:
                result = types.find_message(EMPTY)
            elif kind is StepKind.SIGNAL:
                result = self._message_type(step.wait_signal.type or EMPTY, f"{path}.wait_signal.type", types)
                self._check_signal(step.wait_signal, index, signals)
            found.append(StepTypes(methods, undo, result))
        return found

    def _check_signal(self, given: workflow_pb2.WaitSignal, index: int, signals: dict[str, tuple[str, int]]) -> None:
        name = given.type or EMPTY
        first, step = signals.setdefault(given.signal, (name, index))
        if first != name:
            self.report.add(
                f"steps[{index}].wait_signal.type",
                "INVALID_SETTING",
                f"steps[{step}] waits for the signal `{given.signal}` with the type {first}, this step with {name}: "
                "give both the same type, or two names",
            )

    def _unary(self, types: TypePool, name: str, path: str) -> MethodDescriptor | None:
        method = types.find_method(name)
        if method is not None and (method.client_streaming or method.server_streaming):
            self.report.add(path, "STREAMING_METHOD", f"{name} streams; a step calls a unary method")
        return method

    def _output(self, bindings: BindingCompiler, output_type: Descriptor | None) -> Builder | None:
        workflow = self.workflow
        whole = workflow.HasField("whole_output")
        if whole and workflow.output:
            self.report.add(
                "whole_output",
                "INVALID_BINDING",
                "give either output or whole_output, not both",
            )
        if not workflow.output_type:
            if whole or workflow.output:
                path = "whole_output" if whole else "output"
                self.report.add(
                    path,
                    "INVALID_BINDING",
                    "there is no output_type; name one, or leave the output out",
                )
            return None
        if whole:
            return bindings.whole(workflow.whole_output, output_type, Place("whole_output", None))
        if not workflow.output:
            self.report.add(
                "output",
                "INVALID_BINDING",
                f"nothing gives the output {workflow.output_type}; bind output or whole_output",
            )
            return None
        return bindings.message(workflow.output, output_type, Place("output", None))

    def _edges(self, wiring: Wiring) -> tuple[list[dict[int, str]], list[dict[int, str]]]:
        data = [wiring.reads_from(index) for index in range(len(wiring.ids))]
        return [{**wiring.after[index], **found} for index, found in enumerate(data)], data


def _revision(workflow: workflow_pb2.Workflow, digests: tuple[str, ...]) -> str:
    content = hashlib.sha256(workflow.SerializeToString(deterministic=True))
    for digest in digests:
        content.update(digest.encode())
    return content.hexdigest()[:16]
