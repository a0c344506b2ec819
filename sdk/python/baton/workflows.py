"""The workflow builder: a Python function that records steps, checked by type checkers against the generated stubs.

Nothing here talks to a server; the result is a baton.v1.Workflow, the same that YAML or another language would give.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, cast, overload

from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from baton.bindings import instant_or_span, items_of, type_of, whole
from baton.conditions import Condition, When, condition_text
from baton.definitions import In, Out, WorkflowDefinition
from baton.descriptors import descriptor_of
from baton.errors import BindError
from baton.methods import snake_case
from baton.policies import Branch, Method, Req, Resp, Retry, Seconds
from baton.policies import duration as duration_of
from baton.references import Reference, Source
from baton.settings import CallSettings, PartSettings, StepSettings, check_names, write_settings
from baton.steps import CallStep, EntriesOutput, MapOutput, Step, output_of_map
from baton.targets import Target, target_of
from baton.v1 import workflow_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

Item = TypeVar("Item")
Key = TypeVar("Key")
Signal = TypeVar("Signal", bound=Message)
AnyStep = TypeVar("AnyStep", bound=Step[Any])

_STEP_ID = re.compile(r"[a-z][a-z0-9_]{0,62}")
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_BRANCHES_LIMIT = 16


class Workflow(Generic[In, Out]):
    """What a workflow function writes into: `input` to read from, `step` to call a method."""

    __slots__ = ("_closed", "_input_class", "_signals", "_steps")

    def __init__(self, input_class: type[In]) -> None:
        self._input_class = input_class
        self._steps: dict[str, Step[Any]] = {}
        self._signals: dict[type[Message], None] = {}
        self._closed = False

    @property
    def input(self) -> In:
        """Reference to the workflow's input."""
        return cast("In", Reference(Source("input", descriptor=descriptor_of(self._input_class))))

    def step(
        self, method: Method[Req, Resp], request: Req, **settings: Unpack[CallSettings[Resp]]
    ) -> CallStep[Resp, Resp]:
        """Adds a call of `method` with `request`: bind(…), a reference to a whole message, or a constant message.

        `id` is by default the method's name in snake_case. `after` adds order without data. `when` false skips the
        step; `expect` false, over its own `output`, fails the attempt. `queue_timeout` limits the wait for a worker,
        `attempt_timeout` one attempt, `step_timeout` all of them, `heartbeat_timeout` the time between two signs of
        life. `fallback` are other methods for the same output, `on_failure` the ways on after a failure for good (see
        Step.on_failure for steps that come later). `approval` has a person approve the exact request before.

        Raises BindError for what cannot be right, naming the step and the field.
        """
        given = cast("dict[str, Any]", settings)
        called = target_of(method)
        return self._call(self._message(given, called.name, CallSettings), called, request, given)

    def map(
        self,
        target: Method[Req, Resp] | WorkflowDefinition[Req, Resp],
        items: Iterable[Item],
        request: Callable[[Item], Req],
        *,
        max_parallel: int | None = None,
        max_failed: int = 0,
        **settings: Unpack[PartSettings[Resp]],
    ) -> CallStep[MapOutput[Resp], Resp]:
        """Adds a call for each item of a list: of a method, or of another workflow as a run of its own.

        `items` is a reference to a repeated field of at most 10,000 items, `request` a function that makes the request
        of one: `lambda item: bind(Request, text=item.text)`. `expression(int, "index")` is its place. `max_parallel`
        (10) items are called for at a time; `max_failed` may fail. The output has `items` and `failed`.
        """
        return self._map(
            target, items, request, max_parallel, max_failed, cast("dict[str, Any]", settings), keyed=False
        )

    def map_entries(
        self,
        target: Method[Req, Resp] | WorkflowDefinition[Req, Resp],
        entries: Mapping[Key, Item],
        request: Callable[[Item], Req],
        *,
        max_parallel: int | None = None,
        max_failed: int = 0,
        **settings: Unpack[PartSettings[Resp]],
    ) -> CallStep[EntriesOutput[Key, Resp], Resp]:
        """Adds a call for each entry of a map field, as `map` does for lists; `expression(str, "key")` is its key.

        The output has `entries` and `failed`, by key.
        """
        return self._map(
            target, entries, request, max_parallel, max_failed, cast("dict[str, Any]", settings), keyed=True
        )

    def repeat(
        self,
        target: Method[Req, Resp] | WorkflowDefinition[Req, Resp],
        request: Callable[[Resp], Req],
        *,
        until: Callable[[Resp], When] | Condition | str,
        max_iterations: int | None = None,
        interval: Seconds | None = None,
        **settings: Unpack[PartSettings[Resp]],
    ) -> CallStep[Resp, Resp]:
        """Adds calls of a method, or runs of another workflow, one after the other until a condition holds.

        `request` makes the request from the output of the call before, which is an empty message for the first:
        `lambda previous: bind(Request, draft=previous.draft)`. `until` is the condition on the output of a call:
        `lambda output: output.content`. `expression(int, "iteration")` is the number of the call, from 1.
        `max_iterations` (10) limits them, `interval` is the time between two. The output is that of the last.
        """
        given = cast("dict[str, Any]", settings)
        called = target_of(target)
        message = self._message(given, called.name)
        where = f"step {message.id!r}: repeat"
        own = cast("Resp", Reference(Source("output", descriptor=called.output_type)))
        condition = until if isinstance(until, (Condition, str)) else until(own)
        message.repeat.until = condition_text(condition, f"{where}: until")
        if max_iterations is not None:
            message.repeat.max_iterations = max_iterations
        if interval is not None:
            message.repeat.interval.CopyFrom(duration_of(interval, f"{where}: interval", zero=True))
        previous = cast("Resp", Reference(Source("previous", descriptor=called.output_type)))
        return self._call(message, called, request(previous), given)

    @overload
    def run_workflow(
        self,
        workflow: WorkflowDefinition[Req, Resp],
        request: Req,
        *,
        revision: str = "",
        **settings: Unpack[StepSettings],
    ) -> CallStep[Resp, Resp]: ...

    @overload
    def run_workflow(
        self,
        workflow: str,
        request: Message | None = None,
        *,
        output: type[Resp],
        revision: str = "",
        **settings: Unpack[StepSettings],
    ) -> CallStep[Resp, Resp]: ...

    def run_workflow(
        self,
        workflow: WorkflowDefinition[Any, Any] | str,
        request: Message | None = None,
        *,
        output: type[Message] | None = None,
        revision: str = "",
        **settings: Unpack[StepSettings],
    ) -> CallStep[Any, Any]:
        """Adds a run of another applied workflow, as a run of its own, whose input `request` makes.

        The run is cancelled with this one and has at most its time. `revision` is by default the newest when this
        workflow is applied. By name, `output` is the type of what it gives.
        """
        given = cast("dict[str, Any]", settings)
        if isinstance(workflow, str):
            output_type = descriptor_of(output) if output is not None else None
            called = Target(workflow, None, type_of(request), output_type)
        else:
            called = target_of(workflow)
        message = self._message(given, called.name, StepSettings)
        message.run_workflow.revision = revision
        return self._call(message, called, request, given)

    def sleep(
        self,
        duration: Seconds | Duration | None = None,
        *,
        until: Timestamp | datetime | None = None,
        **settings: Unpack[StepSettings],
    ) -> Step[Empty]:
        """Adds a wait: for some time from when the step is ready, or `until` an instant.

        Both may be references. A wait that would end after the run's time fails at once (DEADLINE_UNREACHABLE).
        """
        given = cast("dict[str, Any]", settings)
        message = self._message(given, "sleep", StepSettings)
        where = f"step {message.id!r}: sleep"
        if (duration is None) == (until is None):
            raise BindError(f"{where} takes a time to wait, or until=")
        if until is None:
            constant = isinstance(duration, (int, float, timedelta))
            span = duration_of(cast("Seconds", duration), where) if constant else duration
            message.sleep.duration.CopyFrom(instant_or_span(descriptor_of(Duration), span, where))
        else:
            instant = _timestamp(until) if isinstance(until, datetime) else until
            message.sleep.until.CopyFrom(instant_or_span(descriptor_of(Timestamp), instant, where))
        return self._add(Step(self, message, descriptor_of(Empty)), given, None)

    @overload
    def wait_signal(
        self, signal: str, *, timeout: Seconds | None = None, **settings: Unpack[StepSettings]
    ) -> Step[Empty]: ...

    @overload
    def wait_signal(
        self, signal: str, type: type[Signal], *, timeout: Seconds | None = None, **settings: Unpack[StepSettings]
    ) -> Step[Signal]: ...

    def wait_signal(
        self,
        signal: str,
        type: type[Message] | None = None,
        *,
        timeout: Seconds | None = None,
        **settings: Unpack[StepSettings],
    ) -> Step[Any]:
        """Adds a wait for a signal, whose message of this `type` (by default an Empty) is the output.

        A signal that came before is taken at once. After `timeout` the step fails (SIGNAL_TIMEOUT).
        """
        given = cast("dict[str, Any]", settings)
        message = self._message(given, signal, StepSettings)
        message.wait_signal.signal = signal
        if type is not None:
            self._signals[type] = None
            message.wait_signal.type = descriptor_of(type).full_name
        if timeout is not None:
            message.wait_signal.timeout.CopyFrom(duration_of(timeout, f"step {message.id!r}: timeout"))
        return self._add(Step(self, message, descriptor_of(type or Empty)), given, None)

    def _message(self, settings: dict[str, Any], named: str, known: type = PartSettings) -> workflow_pb2.Step:
        """Begins a step, whose id is by default made from what it is `named` for."""
        self._check_open()
        check_names(settings, known)
        return workflow_pb2.Step(id=self._step_id(settings.get("id"), snake_case(named).replace("-", "_")))

    def _map(
        self,
        target: Any,
        items: object,
        request: Callable[[Any], Any],
        max_parallel: int | None,
        max_failed: int,
        settings: dict[str, Any],
        *,
        keyed: bool,
    ) -> CallStep[Any, Any]:
        called = target_of(target)
        message = self._message(settings, called.name)
        where = f"step {message.id!r}: items"
        binding, item, key = items_of(items, where)
        if keyed != (key is not None):
            raise BindError(f"{where}: map goes over lists, map_entries over map fields")
        message.map.items.CopyFrom(binding)
        message.map.max_parallel = max_parallel or 0
        message.map.max_failed = max_failed
        return self._call(message, called, request(Reference(item)), settings, key=key, mapped=True)

    def _call(
        self,
        message: workflow_pb2.Step,
        called: Target,
        request: object,
        settings: dict[str, Any],
        *,
        key: FieldDescriptor | None = None,
        mapped: bool = False,
    ) -> CallStep[Any, Any]:
        """Adds a step that calls: a method, or another workflow."""
        called.write(message, request)
        output = called.output_type
        if mapped and output is not None:
            output = output_of_map(message.id, output, key)
        return self._add(CallStep(self, message, called.output_type, output), settings, called.method)

    def _add(self, step: AnyStep, settings: dict[str, Any], method: MethodDescriptor | None) -> AnyStep:
        message = step._message
        after = settings.get("after", ())
        after = (after,) if isinstance(after, Step) else after
        message.after.extend(self._ids_of(after, f"step {message.id!r}: after"))
        write_settings(message, settings, method)
        for way in settings.get("on_failure", ()):
            self._add_branch(message, way)
        self._steps[message.id] = step
        return step

    def _step_id(self, given: str | None, made: str) -> str:
        step_id = given if given is not None else made
        if not _STEP_ID.fullmatch(step_id):
            raise BindError(f"{step_id!r} is not a step id: lower-case letters, digits and underscores, at most 63")
        if step_id in self._steps:
            free = next(n for n in range(2, len(self._steps) + 3) if f"{step_id}_{n}" not in self._steps)
            raise BindError(f"there is a step {step_id!r} already; name this one, such as id='{step_id}_{free}'")
        return step_id

    def _ids_of(self, steps: Iterable[Step[Any]], where: str) -> list[str]:
        ids: list[str] = []
        for step in steps:
            if not isinstance(step, Step):
                close = difflib.get_close_matches(str(step), self._steps, n=1)
                raise BindError(
                    f"{where} takes steps, not {step!r}" + (f"; use the step {close[0]!r}" if close else "")
                )
            if step._workflow is not self:
                raise BindError(f"{where}: the step {step.id!r} belongs to another workflow")
            if step.id not in ids:
                ids.append(step.id)
        return ids

    def _add_branch(self, message: workflow_pb2.Step, way: Branch) -> None:
        self._check_open()
        if way.step is not None:
            self._ids_of((way.step,), f"step {message.id!r}: on_failure")
            if way.step.id == message.id:
                raise BindError(
                    f"step {message.id!r}: on_failure cannot lead to the step itself; see retry and fallback"
                )
        if len(message.on_failure) == _BRANCHES_LIMIT:
            raise BindError(f"step {message.id!r}: at most {_BRANCHES_LIMIT} branches of on_failure are taken")
        message.on_failure.append(way.message())

    def _check_open(self) -> None:
        if self._closed:
            raise BindError("the workflow function has returned; add steps and branches inside it")

    def _close(self, message: workflow_pb2.Workflow) -> None:
        self._closed = True
        if not self._steps:
            raise BindError(f"the workflow {message.name!r} has no step; add one with wf.step(…)")
        message.steps.extend(step._message for step in self._steps.values())


def workflow(
    input_class: type[In],
    output_class: type[Out],
    *,
    name: str | None = None,
    description: str | None = None,
    run_timeout: Seconds | None = None,
    retry: Retry | None = None,
) -> Callable[[Callable[[Workflow[In, Out]], Out]], WorkflowDefinition[In, Out]]:
    """Turns a function that takes a Workflow and returns the output into a workflow. It runs once, here.

    `name` is by default the function's, with hyphens; `description` the first line of its docstring. `run_timeout`
    limits a whole run; `retry` holds for every step without its own. Raises BindError for what cannot be right.
    """

    def record(function: Callable[[Workflow[In, Out]], Out]) -> WorkflowDefinition[In, Out]:
        message = workflow_pb2.Workflow(
            name=function.__name__.strip("_").replace("_", "-") if name is None else name,
            description=_first_line(function.__doc__) if description is None else description,
            input_type=input_class.DESCRIPTOR.full_name,
            output_type=output_class.DESCRIPTOR.full_name,
        )
        if not _NAME.fullmatch(message.name):
            raise BindError(
                f"{message.name!r} is not a workflow name: lower-case letters, digits and hyphens, at most 63"
            )
        if run_timeout is not None:
            message.run_timeout.CopyFrom(duration_of(run_timeout, "run_timeout"))
        if retry is not None:
            message.retry.CopyFrom(retry.message())
        recorder: Workflow[In, Out] = Workflow(input_class)
        bound = whole(descriptor_of(output_class), _called(function, recorder), f"the output of {message.name!r}")
        recorder._close(message)
        for field, binding in bound.fields.items():
            message.output[field].CopyFrom(binding)
        if bound.whole is not None:
            message.whole_output.CopyFrom(bound.whole)
        return WorkflowDefinition(message, input_class, output_class, tuple(recorder._signals))

    return record


def _called(function: Callable[[Workflow[In, Out]], Out], recorder: Workflow[In, Out]) -> Out:
    try:
        return function(recorder)
    except TypeError as error:
        if not isinstance(error, BindError):
            error.add_note(
                "In a workflow messages are built with bind(Message, field=…); Message(…) takes only plain values."
            )
        raise


def _timestamp(instant: datetime) -> Timestamp:
    if instant.tzinfo is None:
        raise BindError(f"{instant!r} has no time zone; give one, such as datetime.now(timezone.utc)")
    message = Timestamp()
    message.FromDatetime(instant)
    return message


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n", 1)[0]
