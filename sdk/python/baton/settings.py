"""What can be said of a step that calls a method, and how it is written into the step's message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

from google.protobuf.message import Message

from baton.conditions import When, condition_text
from baton.errors import BindError
from baton.policies import ApprovalRule, Branch, Delivery, Fallback, Retry, Seconds, duration
from baton.references import key_text
from baton.v1 import workflow_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

    from baton.steps import Step

Resp = TypeVar("Resp", bound=Message)


class StepSettings(TypedDict, total=False):
    """Settings of every step.

    `id` is by default made from what the step does, in snake_case. `after` adds order without data. `when` false skips
    the step. `step_timeout` limits the step from its being ready, `on_failure` are the ways on after a failure for good
    (see Step.on_failure for steps that come later).
    """

    id: str | None
    description: str
    after: Iterable[Step[Any]] | Step[Any]
    when: When | None
    step_timeout: Seconds | None
    on_failure: Iterable[Branch]


class PartSettings(StepSettings, Generic[Resp], total=False):
    """Settings of a step that calls a method, once or many times.

    `expect` false, over its own `output`, fails the attempt. `queue_timeout` limits the wait for a worker,
    `attempt_timeout` one attempt, `heartbeat_timeout` the time between two signs of life of one. `fallback` are other
    methods for the same output. `limits` names limits of the scope KEY that its calls count in, each with its key: a
    reference or an expression of a string, or None for one that all share. `priority`, from -100 to 100, is added to
    the run's.
    """

    expect: When | None
    retry: Retry | None
    queue_timeout: Seconds | None
    attempt_timeout: Seconds | None
    delivery: Delivery | None
    fallback: Iterable[Fallback[Resp]]
    heartbeat_timeout: Seconds | None
    limits: Mapping[str, str | None]
    priority: int


class CallSettings(PartSettings[Resp], Generic[Resp], total=False):
    """Settings of a step that calls a method once; `approval` has a person approve the exact request before."""

    approval: ApprovalRule | None


_TIMES = ("queue_timeout", "attempt_timeout", "step_timeout", "heartbeat_timeout")


def check_names(settings: dict[str, Any], known: Any) -> None:
    """Raises BindError for a setting that a step of this kind does not have."""
    unknown = sorted(settings.keys() - known.__annotations__.keys())
    if unknown:
        names = ", ".join(sorted(known.__annotations__))
        raise BindError(f"a step of this kind has no setting {unknown[0]!r}; it has {names}")


def write_settings(message: workflow_pb2.Step, settings: dict[str, Any], target: MethodDescriptor | None) -> None:
    """Writes settings into the step's message, but for those that name other steps: `id`, `after`, `on_failure`."""
    where = f"step {message.id!r}"
    message.description, message.priority = settings.get("description", ""), settings.get("priority", 0)
    for limit, key in settings.get("limits", {}).items():
        message.limits.add(limit=limit, key="" if key is None else key_text(key, f"{where}: limits"))
    for name in ("when", "expect"):
        if settings.get(name) is not None:
            setattr(message, name, condition_text(settings[name], f"{where}: {name}"))
    for name in _TIMES:
        if settings.get(name) is not None:
            getattr(message, name).CopyFrom(duration(settings[name], f"{where}: {name}"))
    for name in ("retry", "approval"):
        if settings.get(name) is not None:
            getattr(message, name).CopyFrom(settings[name].message())
    if settings.get("delivery") is not None:
        message.delivery = settings["delivery"].value
    for other in settings.get("fallback", ()):
        if target is None:
            raise BindError(f"{where}: a fallback goes with a method; give it to the steps of that workflow")
        _add_fallback(message, target, other)


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
