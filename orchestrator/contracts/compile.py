"""Checks a workflow against contracts and compiles it: either all its violations, or what the engine runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from baton.v1 import workflow_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from orchestrator.contracts.assembly import assemble
from orchestrator.contracts.bindings import BindingCompiler, Builder, Place, expressions_in
from orchestrator.contracts.compiled import (
    CompiledStep,
    CompiledTarget,
    CompiledWorkflow,
)
from orchestrator.contracts.descriptors import (
    Contract,
    TypePool,
)
from orchestrator.contracts.expressions import Expression, ExpressionCompiler, ExpressionFault, Use
from orchestrator.contracts.graph import (
    Wiring,
    check_missing_outputs,
    check_reachability,
    find_cycles,
    wire,
)
from orchestrator.contracts.paths import Names
from orchestrator.contracts.pinning import merge_pinned, pin
from orchestrator.contracts.reads import Site
from orchestrator.contracts.required import Requirements
from orchestrator.contracts.settings import check_timeouts, duration_us, failure_match, retry_policy
from orchestrator.contracts.violations import Report, Violation, limited_hints
from orchestrator.domain.workflow import RetryPolicy

_REPEATABLE = (MethodOptions.IDEMPOTENT, MethodOptions.NO_SIDE_EFFECTS)

# Violations of an inherited request that its step has already.
_ALREADY_REPORTED = frozenset(
    {
        "UNKNOWN_STEP",
        "INVALID_PATH",
        "CYCLE",
        "INVALID_EXPRESSION",
        "EXPRESSION_TOO_COSTLY",
    }
)


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
) -> Checked:
    """Checks a workflow against the contracts (worker name, contract) of its namespace and compiles it.

    Only the contracts of workers that serve a method used, or that alone define the input or output type, are merged
    and pinned. With `require_name`, a workflow without a name is a violation. Raises nothing for a wrong workflow.
    """
    with limited_hints():
        return _Check(workflow, contracts, require_name).run()


class _Check:
    def __init__(
        self,
        workflow: workflow_pb2.Workflow,
        contracts: Sequence[tuple[str, Contract]],
        require_name: bool,
    ) -> None:
        self.workflow = workflow
        self.contracts = contracts
        self.report = Report()
        self.steps: dict[str, int] = {}
        for index, step in enumerate(workflow.steps):
            self.steps.setdefault(step.id, index)
        if require_name and not workflow.name:
            self.report.add("name", "INVALID_SETTING", "a workflow that is applied needs a name")

    def run(self) -> Checked:
        wiring = wire(self.workflow, self.steps, self.report)
        check_timeouts(self.workflow, self.report)
        pinned = pin(self.workflow, self.contracts, self.report)
        types = merge_pinned(pinned, self.workflow, self.report)
        if types is None:
            return Checked(self.report.violations(), None, ())
        input_type = self._message_type(self.workflow.input_type, "input_type", types)
        output_type = self._message_type(self.workflow.output_type, "output_type", types)
        methods = self._methods(types)
        failure_type = types.find_message("baton.v1.Failure")
        assert failure_type is not None
        names = Names(
            input_type,
            self.steps,
            [found[0].output_type if found[0] is not None else None for found in methods],
            failure_type,
            types.message_class(failure_type),
            bool(self.workflow.input_type),
        )
        expressions = ExpressionCompiler(types, names)
        expressions.prepare(self._expressions(names))
        requirements = Requirements()
        bindings = BindingCompiler(
            types,
            names,
            wiring.possible,
            requirements,
            expressions,
            self.report,
            wiring.sites,
        )
        steps = [
            self._step(index, step, methods[index], bindings, wiring) for index, step in enumerate(self.workflow.steps)
        ]
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
            steps=tuple(compiled_step for compiled_step, _ in steps),
            output=output,
        )
        return Checked((), compiled, listed)

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

    def _methods(self, types: TypePool) -> list[list[MethodDescriptor | None]]:
        """Returns for each step its method and those of its fallbacks; None where unknown or streaming."""
        found: list[list[MethodDescriptor | None]] = [[] for _ in self.workflow.steps]
        for index, step in enumerate(self.workflow.steps):
            path = f"steps[{index}]"
            found[index].append(self._unary(types, step.method, f"{path}.method"))
            for number, fallback in enumerate(step.fallback):
                found[index].append(self._unary(types, fallback.method, f"{path}.fallback[{number}].method"))
        return found

    def _unary(self, types: TypePool, name: str, path: str) -> MethodDescriptor | None:
        method = types.find_method(name)
        if method is not None and (method.client_streaming or method.server_streaming):
            self.report.add(path, "STREAMING_METHOD", f"{name} streams; a step calls a unary method")
        return method

    def _expressions(self, names: Names) -> Iterable[Use]:
        for index, step in enumerate(self.workflow.steps):
            holders: list[workflow_pb2.Step | workflow_pb2.Fallback] = [step, *step.fallback]
            for holder in holders:
                for binding in (*holder.request.values(), holder.whole_request):
                    yield from (Use(source, index) for source in expressions_in(binding))
            if step.when:
                yield Use(step.when, index)
            if step.expect:
                yield Use(step.expect, index, names.outputs[index], in_expect=True)
        for binding in (*self.workflow.output.values(), self.workflow.whole_output):
            yield from (Use(source, None) for source in expressions_in(binding))

    def _step(
        self,
        index: int,
        step: workflow_pb2.Step,
        methods: list[MethodDescriptor | None],
        bindings: BindingCompiler,
        wiring: Wiring,
    ) -> tuple[CompiledStep, list[RetryPolicy]]:
        path = f"steps[{index}]"
        self._check_codes(step, path)
        request = self._request(step, methods[0], bindings, f"{path}.", index)
        targets = [_target(step.method, methods[0], request, bindings.types)]
        policies = [
            self._retry(
                step.retry if step.HasField("retry") else None,
                methods[0],
                f"{path}.retry",
            )
        ]
        when = self._condition(step.when, f"{path}.when", index, None, bindings, False)
        if step.when:
            wiring.when[index] = when.when_true if when is not None else {}
            if when is not None:
                wiring.when_sites[index] = Site(f"{path}.when", when.reads)
        output_type = methods[0].output_type if methods[0] is not None else None
        expect = self._condition(step.expect, f"{path}.expect", index, output_type, bindings, True)
        if expect is not None and (expect.constant or expect.when_true is None):
            self.report.add(
                f"{path}.expect",
                "INVALID_EXPRESSION",
                "the expression is the same for every output, or never true; test a field of `output`, or leave it out",
            )
        if expect is not None and expect.reads:
            wiring.sites.setdefault(index, []).append(Site(f"{path}.expect", expect.reads))
        same_request = {step.method}
        for number, fallback in enumerate(step.fallback):
            here = f"{path}.fallback[{number}]"
            method = methods[number + 1]
            self._check_output_type(methods[0], method, here)
            if fallback.request or fallback.HasField("whole_request"):
                built = self._request(fallback, method, bindings, f"{here}.", index)
            else:
                if fallback.method in same_request and not fallback.HasField("attempt_timeout"):
                    self.report.add(
                        f"{here}.method",
                        "INVALID_SETTING",
                        f"{fallback.method} is called with the same request already; give the fallback another method "
                        "or a request of its own, or raise max_attempts",
                    )
                same_request.add(fallback.method)
                built = self._inherited(step, methods[0], method, request, bindings, f"{here}.", index)
            targets.append(_target(fallback.method, method, built, bindings.types))
            own = fallback.retry if fallback.HasField("retry") else step.retry if step.HasField("retry") else None
            policies.append(
                self._retry(
                    own,
                    method,
                    f"{here}.retry" if fallback.HasField("retry") else f"{path}.retry",
                )
            )
        found = tuple(one for one in targets if one is not None)
        output_class = found[0].response_class if found else None
        return CompiledStep(step.id, found, when, expect, output_class), policies

    def _check_codes(self, step: workflow_pb2.Step, path: str) -> None:
        for number, fallback in enumerate(step.fallback):
            failure_match(fallback.codes, fallback.reasons, f"{path}.fallback[{number}]", self.report)
        for number, branch in enumerate(step.on_failure):
            failure_match(branch.codes, branch.reasons, f"{path}.on_failure[{number}]", self.report)

    def _retry(
        self,
        given: workflow_pb2.RetryPolicy | None,
        method: MethodDescriptor | None,
        path: str,
    ) -> RetryPolicy:
        if given is None and self.workflow.HasField("retry"):
            given, path = self.workflow.retry, "retry"
        return retry_policy(given, _repeatable(method), path, self.report)

    def _request(
        self,
        holder: workflow_pb2.Step | workflow_pb2.Fallback,
        method: MethodDescriptor | None,
        bindings: BindingCompiler,
        prefix: str,
        index: int,
    ) -> Builder | None:
        descriptor = method.input_type if method is not None else None
        if holder.HasField("whole_request"):
            if holder.request:
                self.report.add(
                    f"{prefix}whole_request",
                    "INVALID_BINDING",
                    "give either request or whole_request, not both",
                )
            return bindings.whole(holder.whole_request, descriptor, Place(f"{prefix}whole_request", index))
        return bindings.message(holder.request, descriptor, Place(f"{prefix}request", index))

    def _inherited(
        self,
        step: workflow_pb2.Step,
        first: MethodDescriptor | None,
        method: MethodDescriptor | None,
        request: Builder | None,
        bindings: BindingCompiler,
        prefix: str,
        index: int,
    ) -> Builder | None:
        if method is None or (first is not None and first.input_type.full_name == method.input_type.full_name):
            return request
        own_report, own_sites = bindings.report, bindings.sites
        bindings.report, bindings.sites = Report(), {}
        self.report, outer = bindings.report, self.report
        built = self._request(step, method, bindings, prefix, index)
        found = bindings.report.violations()
        bindings.report, bindings.sites, self.report = own_report, own_sites, outer
        for violation in found:
            if violation.reason not in _ALREADY_REPORTED:
                self.report.add(violation.path, violation.reason, violation.message)
        return built

    def _check_output_type(
        self,
        first: MethodDescriptor | None,
        fallback: MethodDescriptor | None,
        path: str,
    ) -> None:
        if first is None or fallback is None:
            return
        wanted, given = first.output_type.full_name, fallback.output_type.full_name
        if wanted != given:
            self.report.add(
                f"{path}.method",
                "FALLBACK_TYPE_MISMATCH",
                f"the step's output is {wanted}, but the fallback's is {given}",
            )

    def _condition(
        self,
        source: str,
        path: str,
        index: int,
        output_type: Descriptor | None,
        bindings: BindingCompiler,
        in_expect: bool,
    ) -> Expression | None:
        if not source:
            return None
        try:
            compiled = bindings.expressions.compile(Use(source, index, output_type, in_expect))
        except ExpressionFault as error:
            self.report.add(path, error.reason, error.message)
            if error.reads:
                bindings.sites.setdefault(index, []).append(Site(path, error.reads, has_default=True))
            return None
        if compiled.complete and compiled.type.kind not in ("bool", "dyn"):
            self.report.add(
                path,
                "TYPE_MISMATCH",
                f"a condition is bool, but the expression is {compiled.type}",
            )
        return compiled

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


def _repeatable(method: MethodDescriptor | None) -> bool:
    return method is not None and method.GetOptions().idempotency_level in _REPEATABLE


def _target(
    name: str, method: MethodDescriptor | None, request: Builder | None, types: TypePool
) -> CompiledTarget | None:
    if method is None or request is None:
        return None
    request_class: type[Message] = types.message_class(method.input_type)
    return CompiledTarget(
        name,
        request_class,
        types.message_class(method.output_type),
        _repeatable(method),
        request,
    )


def _revision(workflow: workflow_pb2.Workflow, digests: tuple[str, ...]) -> str:
    content = hashlib.sha256(workflow.SerializeToString(deterministic=True))
    for digest in digests:
        content.update(digest.encode())
    return content.hexdigest()[:16]
