"""The workflow builder: a Python function that records steps, checked by type checkers against the generated stubs.

Nothing here talks to a server; the result is a baton.v1.Workflow, the same that YAML or another language would give.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from google.protobuf.message import Message

from baton.bindings import whole
from baton.conditions import Condition, When, condition_text
from baton.descriptors import descriptor_of, file_set
from baton.errors import BindError
from baton.methods import method_of, path_of, snake_case
from baton.policies import Branch, Code, Delivery, Fallback, Method, Req, Resp, Retry, Seconds, branch, duration
from baton.references import Reference, Source
from baton.v1 import failure_pb2, workflow_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

In = TypeVar("In", bound=Message)
Out = TypeVar("Out", bound=Message)

_STEP_ID = re.compile(r"[a-z][a-z0-9_]{0,62}")
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_BRANCHES_LIMIT = 16


class Step(Generic[Resp]):
    """A step as it is recorded: its output and its states can be read by what comes after it."""

    __slots__ = ("_message", "_method", "_workflow")

    def __init__(self, workflow: Workflow[Any, Any], message: workflow_pb2.Step, method: MethodDescriptor) -> None:
        self._workflow = workflow
        self._message = message
        self._method = method

    def __repr__(self) -> str:
        return f"<step {self.id}>"

    @property
    def id(self) -> str:
        """Id of the step in the workflow."""
        return self._message.id

    @property
    def output(self) -> Resp:
        """Reference to the step's output, for the type checker the method's response message."""
        return cast("Resp", Reference(Source(f"steps.{self.id}.output", descriptor=self._method.output_type)))

    @property
    def failure(self) -> failure_pb2.Failure:
        """Reference to why the step failed: its `code`, `reason` and `message`."""
        source = Source(f"steps.{self.id}.failure", descriptor=descriptor_of(failure_pb2.Failure))
        return cast("failure_pb2.Failure", Reference(source))

    @property
    def succeeded(self) -> Condition:
        """Condition: the step ended with an output."""
        return Condition(f"steps.{self.id}.succeeded")

    @property
    def failed(self) -> Condition:
        """Condition: the step failed for good."""
        return Condition(f"steps.{self.id}.failed")

    @property
    def skipped(self) -> Condition:
        """Condition: the step was not run."""
        return Condition(f"steps.{self.id}.skipped")

    def on_failure(
        self, step: Step[Any] | None = None, *, codes: Iterable[Code] = (), reasons: Iterable[str] = ()
    ) -> None:
        """Lets the run go on after this step has failed for good: to `step`, which runs only then, or just on.

        Any of `codes` or `reasons` matches; with neither, every failure. Branches are tried in the order given.
        """
        self._workflow._add_branch(self._message, branch(step, codes=codes, reasons=reasons))


class Workflow(Generic[In, Out]):
    """What a workflow function writes into: `input` to read from, `step` to call a method."""

    __slots__ = ("_closed", "_input_class", "_steps")

    def __init__(self, input_class: type[In]) -> None:
        self._input_class = input_class
        self._steps: dict[str, Step[Any]] = {}
        self._closed = False

    @property
    def input(self) -> In:
        """Reference to the workflow's input."""
        return cast("In", Reference(Source("input", descriptor=descriptor_of(self._input_class))))

    def step(
        self,
        method: Method[Req, Resp],
        request: Req,
        *,
        id: str | None = None,
        description: str = "",
        after: Iterable[Step[Any]] | Step[Any] = (),
        when: When | None = None,
        expect: When | None = None,
        retry: Retry | None = None,
        queue_timeout: Seconds | None = None,
        attempt_timeout: Seconds | None = None,
        step_timeout: Seconds | None = None,
        delivery: Delivery | None = None,
        fallback: Iterable[Fallback[Resp]] = (),
        on_failure: Iterable[Branch] = (),
    ) -> Step[Resp]:
        """Adds a call of `method` with `request`: bind(…), a reference to a whole message, or a constant message.

        `id` is by default the method's name in snake_case. `after` adds order without data. `when` false skips the
        step; `expect` false, over its own `output`, fails the attempt. `queue_timeout` limits the wait for a worker,
        `attempt_timeout` one attempt, `step_timeout` all of them. `fallback` are other methods for the same output,
        `on_failure` the ways on after a failure for good (see Step.on_failure for steps that come later).

        Raises BindError for what cannot be right, naming the step and the field.
        """
        self._check_open()
        target = method_of(method)
        message = workflow_pb2.Step(id=self._step_id(id, target.name), method=path_of(target), description=description)
        where = f"step {message.id!r}"
        bound = whole(target.input_type, request, f"{where}: {message.method}")
        for name, binding in bound.fields.items():
            message.request[name].CopyFrom(binding)
        if bound.whole is not None:
            message.whole_request.CopyFrom(bound.whole)
        message.after.extend(self._ids_of((after,) if isinstance(after, Step) else after, f"{where}: after"))
        if when is not None:
            message.when = condition_text(when, f"{where}: when")
        if expect is not None:
            message.expect = condition_text(expect, f"{where}: expect")
        if retry is not None:
            message.retry.CopyFrom(retry.message())
        if delivery is not None:
            message.delivery = delivery.value
        _set_times(message, queue_timeout, attempt_timeout, step_timeout)
        for other in fallback:
            _add_fallback(message, target, other)
        for way in on_failure:
            self._add_branch(message, way)
        step: Step[Resp] = Step(self, message, target)
        self._steps[message.id] = step
        return step

    def _step_id(self, given: str | None, method: str) -> str:
        step_id = given if given is not None else snake_case(method)
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


@dataclass(frozen=True, slots=True)
class WorkflowDefinition(Generic[In, Out]):
    """A workflow that was written in Python: what to give to a client, or to write to a file as protobuf JSON."""

    definition: workflow_pb2.Workflow
    input_class: type[In]
    output_class: type[Out]

    @property
    def name(self) -> str:
        """Name of the workflow."""
        return self.definition.name

    def with_types(self) -> workflow_pb2.Workflow:
        """Returns the definition with the descriptors of its input and output, which no worker may have."""
        message = workflow_pb2.Workflow()
        message.CopyFrom(self.definition)
        message.types.CopyFrom(file_set((descriptor_of(self.input_class), descriptor_of(self.output_class))))
        return message


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
            message.run_timeout.CopyFrom(duration(run_timeout, "run_timeout"))
        if retry is not None:
            message.retry.CopyFrom(retry.message())
        recorder: Workflow[In, Out] = Workflow(input_class)
        bound = whole(descriptor_of(output_class), _called(function, recorder), f"the output of {message.name!r}")
        recorder._close(message)
        for field, binding in bound.fields.items():
            message.output[field].CopyFrom(binding)
        if bound.whole is not None:
            message.whole_output.CopyFrom(bound.whole)
        return WorkflowDefinition(message, input_class, output_class)

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


def _set_times(
    message: workflow_pb2.Step, queue: Seconds | None, attempt: Seconds | None, step: Seconds | None
) -> None:
    where = f"step {message.id!r}"
    if queue is not None:
        message.queue_timeout.CopyFrom(duration(queue, f"{where}: queue_timeout"))
    if attempt is not None:
        message.attempt_timeout.CopyFrom(duration(attempt, f"{where}: attempt_timeout"))
    if step is not None:
        message.step_timeout.CopyFrom(duration(step, f"{where}: step_timeout"))


def _add_fallback(message: workflow_pb2.Step, target: MethodDescriptor, other: Fallback[Any]) -> None:
    where = f"step {message.id!r}: the fallback {other.message.method}"
    if other.output_type.full_name != target.output_type.full_name:
        raise BindError(f"{where} gives {other.output_type.full_name}, not {target.output_type.full_name}")
    if other.own_request and other.input_type.full_name != target.input_type.full_name:
        raise BindError(
            f"{where} takes {other.input_type.full_name}, and the step's own request is {target.input_type.full_name}; "
            "give it a request"
        )
    message.fallback.append(other.message)


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n", 1)[0]
