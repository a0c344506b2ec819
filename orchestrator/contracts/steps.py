"""Steps compiled: targets, conditions, items, waits and undo calls of each, with the names that each place can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from baton.v1 import workflow_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from orchestrator.contracts.assembly import Assembled
from orchestrator.contracts.bindings import BindingCompiler, Place, RequestHolder, expressions_in
from orchestrator.contracts.builders import Builder
from orchestrator.contracts.children import Children, compile_child
from orchestrator.contracts.compiled import CompiledChild, CompiledSleep, CompiledStep, CompiledTarget
from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.expressions import Expression, ExpressionFault, Use
from orchestrator.contracts.graph import Wiring
from orchestrator.contracts.items import CompiledMap
from orchestrator.contracts.kinds import is_repeated, kind_of
from orchestrator.contracts.local_names import NO_LOCALS, Locals, iteration_locals, output_local, until_locals
from orchestrator.contracts.reads import Site
from orchestrator.contracts.settings import (
    around_step,
    check_within,
    duration_us,
    failure_match,
    retry_policy,
    undo_retry_policy,
)
from orchestrator.contracts.step_limits import compile_limits
from orchestrator.contracts.types import DURATION, TIMESTAMP
from orchestrator.contracts.violations import Report
from orchestrator.domain.workflow import RetryPolicy, StepKind

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
class StepTypes:
    """What is known of a step's types before it is compiled; None where a type is unknown.

    `methods` are its own and those of its fallbacks. `result` is the output of one call.
    """

    methods: Sequence[MethodDescriptor | None]
    undo: MethodDescriptor | None
    result: Descriptor | None


@dataclass(frozen=True, slots=True)
class Visible:
    """The local names of each place of a step."""

    request: Locals
    after_call: Locals
    until: Locals


def visible_in(
    step: workflow_pb2.Step, result: Descriptor | None, found: CompiledMap | None, types: TypePool
) -> Visible:
    """Returns the local names of each place of a step."""
    request = NO_LOCALS
    if found is not None:
        request = found.visible
    elif is_repeated(step):
        request = iteration_locals(result, types)
    return Visible(request, {**request, **output_local(result)}, until_locals(result))


def uses_of(step: workflow_pb2.Step, index: int, visible: Visible) -> Iterator[Use]:
    """Yields the expressions of a step, but for the items of its map."""
    holders: list[tuple[RequestHolder, Locals]] = [(step, visible.request)]
    holders.extend((fallback, visible.request) for fallback in step.fallback)
    if step.HasField("undo"):
        holders.append((step.undo, visible.after_call))
    for holder, names in holders:
        for binding in (*holder.request.values(), holder.whole_request):
            yield from (Use(source, index, names) for source in expressions_in(binding))
    if step.HasField("sleep"):
        for binding in (step.sleep.duration, step.sleep.until):
            yield from (Use(source, index) for source in expressions_in(binding))
    if step.when:
        yield Use(step.when, index)
    if step.expect:
        yield Use(step.expect, index, visible.after_call)
    yield from (Use(limit.key, index, visible.request) for limit in step.limits if limit.key)
    if is_repeated(step):
        yield Use(step.repeat.until, index, visible.until)


@dataclass(slots=True)
class StepCompiler:
    """Compiles the steps of one workflow, reporting faults."""

    workflow: workflow_pb2.Workflow
    bindings: BindingCompiler
    wiring: Wiring
    report: Report
    maps: Mapping[int, CompiledMap]
    children: Children

    def compile(self, index: int, types: StepTypes, output: Descriptor | None, visible: Visible) -> Assembled:
        """Compiles one step; `output` is the type of its output, None where it is unknown."""
        step, path = self.workflow.steps[index], f"steps[{index}]"
        self._check_codes(step, path)
        when = self._when(step, path, index)
        targets: list[CompiledTarget | None] = []
        policies: list[RetryPolicy] = []
        expect = until = undo = sleep = child = undo_policy = None
        kind = kind_of(step)
        if kind is StepKind.CALL:
            targets, policies = self._targets(index, types, visible)
            if step.expect:
                expect = self._deciding(step.expect, f"{path}.expect", Use(step.expect, index, visible.after_call))
            if step.HasField("undo"):
                undo, undo_policy = self._undo(index, types, visible)
        elif kind is StepKind.RUN_WORKFLOW:
            child = self._child(step, path, index, visible)
        elif kind is StepKind.SLEEP:
            sleep = self._sleep(step, path, index)
        if is_repeated(step):
            use = Use(step.repeat.until, index, visible.until)
            until = self._deciding(step.repeat.until, f"{path}.repeat.until", use)
        found = self.maps.get(index)
        compiled = CompiledStep(
            step.id,
            tuple(one for one in targets if one is not None),
            when,
            expect,
            None if output is None else self.bindings.types.message_class(output),
            None if found is None else found.items,
            until,
            undo,
            child,
            sleep,
            compile_limits(step, index, visible.request, self.bindings, self.wiring, self.report),
            step.priority,
        )
        return Assembled(compiled, policies, undo_policy)

    def _check_codes(self, step: workflow_pb2.Step, path: str) -> None:
        for number, fallback in enumerate(step.fallback):
            failure_match(fallback.codes, fallback.reasons, f"{path}.fallback[{number}]", self.report)
        for number, branch in enumerate(step.on_failure):
            failure_match(branch.codes, branch.reasons, f"{path}.on_failure[{number}]", self.report)

    def _when(self, step: workflow_pb2.Step, path: str, index: int) -> Expression | None:
        if not step.when:
            return None
        when = self._condition(step.when, f"{path}.when", Use(step.when, index))
        self.wiring.when[index] = when.when_true if when is not None else {}
        if when is not None:
            self.wiring.when_sites[index] = Site(f"{path}.when", when.reads)
        return when

    def _deciding(self, source: str, path: str, use: Use) -> Expression | None:
        """Compiles a condition on the output of a call."""
        found = self._condition(source, path, use)
        if found is not None and (found.constant or found.when_true is None):
            self.report.add(
                path,
                "INVALID_EXPRESSION",
                "the expression is the same for every output, or never true; test a field of `output`, or leave it out",
            )
        if found is not None and found.reads:
            self.wiring.sites.setdefault(use.reader, []).append(Site(path, found.reads))
        return found

    def _targets(
        self, index: int, types: StepTypes, visible: Visible
    ) -> tuple[list[CompiledTarget | None], list[RetryPolicy]]:
        step, path, methods = self.workflow.steps[index], f"steps[{index}]", types.methods
        given = step.retry if step.HasField("retry") else None
        request = self.bindings.request(step, _input_type(methods[0]), Place(f"{path}.", index, visible.request))
        targets = [_target(step.method, methods[0], request, self.bindings.types)]
        policies = [self._retry(given, methods[0], f"{path}.retry")]
        same_request = {step.method}
        for number, fallback in enumerate(step.fallback):
            here, method = f"{path}.fallback[{number}]", methods[number + 1]
            place = Place(f"{here}.", index, visible.request)
            self._check_output_type(methods[0], method, here)
            if fallback.request or fallback.HasField("whole_request"):
                built = self.bindings.request(fallback, _input_type(method), place)
            else:
                if fallback.method in same_request and not fallback.HasField("attempt_timeout"):
                    self.report.add(
                        f"{here}.method",
                        "INVALID_SETTING",
                        f"{fallback.method} is called with the same request already; give the fallback another method "
                        "or a request of its own, or raise max_attempts",
                    )
                same_request.add(fallback.method)
                built = self._inherited(step, methods[0], method, request, place)
            targets.append(_target(fallback.method, method, built, self.bindings.types))
            own = fallback.HasField("retry")
            policies.append(self._retry(fallback.retry if own else given, method, f"{here if own else path}.retry"))
        return targets, policies

    def _undo(self, index: int, types: StepTypes, visible: Visible) -> tuple[CompiledTarget | None, RetryPolicy]:
        undo, path = self.workflow.steps[index].undo, f"steps[{index}].undo"
        request = self.bindings.request(undo, _input_type(types.undo), Place(f"{path}.", index, visible.after_call))
        policy = undo_retry_policy(undo.retry if undo.HasField("retry") else None, f"{path}.retry", self.report)
        return _target(undo.method, types.undo, request, self.bindings.types), policy

    def _child(self, step: workflow_pb2.Step, path: str, index: int, visible: Visible) -> CompiledChild | None:
        child = self.children.by_step.get(index)
        place = Place(f"{path}.", index, visible.request)
        if child is not None:
            return compile_child(step, child, self.bindings, place)
        self.bindings.request(step, None, place)
        return None

    def _sleep(self, step: workflow_pb2.Step, path: str, index: int) -> CompiledSleep | None:
        kind = step.sleep.WhichOneof("kind")
        if kind is None:
            self.report.add(f"{path}.sleep", "INVALID_SETTING", "give the time to wait as duration or until")
            return None
        until = kind == "until"
        binding = step.sleep.until if until else step.sleep.duration
        descriptor = self.bindings.types.find_message(TIMESTAMP if until else DURATION)
        place = Place(f"{path}.sleep.{kind}", index)
        time = self.bindings.whole(binding, descriptor, place)
        if time is None:
            return None
        if binding.WhichOneof("kind") == "literal" and not until:
            given = _duration(time.template)
            if duration_us(given) < 0:
                self.report.add(place.path, "INVALID_SETTING", "the time to sleep is negative")
            check_within(place.path, "the time to sleep", given, around_step(self.workflow, step), self.report)
        return CompiledSleep(time, until)

    def _retry(self, given: workflow_pb2.RetryPolicy | None, method: MethodDescriptor | None, path: str) -> RetryPolicy:
        if given is None and self.workflow.HasField("retry"):
            given, path = self.workflow.retry, "retry"
        return retry_policy(given, _repeatable(method), path, self.report)

    def _inherited(
        self,
        step: workflow_pb2.Step,
        first: MethodDescriptor | None,
        method: MethodDescriptor | None,
        request: Builder | None,
        place: Place,
    ) -> Builder | None:
        if method is None or (first is not None and first.input_type.full_name == method.input_type.full_name):
            return request
        bindings = self.bindings
        own_report, own_sites = bindings.report, bindings.sites
        bindings.report, bindings.sites = Report(), {}
        built = bindings.request(step, method.input_type, place)
        found = bindings.report.violations()
        bindings.report, bindings.sites = own_report, own_sites
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

    def _condition(self, source: str, path: str, use: Use) -> Expression | None:
        try:
            compiled = self.bindings.expressions.compile(use)
        except ExpressionFault as error:
            self.report.add(path, error.reason, error.message)
            if error.reads:
                self.bindings.sites.setdefault(use.reader, []).append(Site(path, error.reads, has_default=True))
            return None
        if compiled.complete and compiled.type.kind not in ("bool", "dyn"):
            self.report.add(
                path,
                "TYPE_MISMATCH",
                f"a condition is bool, but the expression is {compiled.type}",
            )
        return compiled


def _input_type(method: MethodDescriptor | None) -> Descriptor | None:
    return None if method is None else method.input_type


def _duration(message: Message) -> Duration:
    return Duration.FromString(message.SerializeToString())


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
