"""delegate(…): a handler adds steps to the run that it is called for, and waits for them as for any coroutine.

How an attempt waits, and how it is suspended, is in worker/attempt.py.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
from collections.abc import Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from google.protobuf import message_factory
from google.protobuf.message import Message

from baton.calls import current
from baton.descriptors import descriptor_of
from baton.errors import BindError, StepFailed
from baton.methods import method_of, path_of, snake_case
from baton.payloads import pack, unpack
from baton.policies import Delivery, Method, Req, Resp, Retry, Seconds, duration
from baton.v1 import failure_pb2, run_pb2, step_service_pb2

if TYPE_CHECKING:
    from baton.worker.attempt import Attempt

T = TypeVar("T")

_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_OWN_KEY = "undo"
_NAME_LIMIT = 50


@overload
def delegate(
    method: Method[Req, Resp],
    request: Req,
    *,
    key: str | None = None,
    detached: Literal[False] = False,
    suspend_after: Seconds | None = None,
    retry: Retry | None = None,
    attempt_timeout: Seconds | None = None,
    step_timeout: Seconds | None = None,
    delivery: Delivery | None = None,
) -> Coroutine[Any, Any, Resp]: ...


@overload
def delegate(
    method: Method[Req, Resp],
    request: Req,
    *,
    key: str | None = None,
    detached: Literal[True],
    retry: Retry | None = None,
    attempt_timeout: Seconds | None = None,
    step_timeout: Seconds | None = None,
    delivery: Delivery | None = None,
) -> Coroutine[Any, Any, None]: ...


def delegate(
    method: Method[Any, Any],
    request: Message,
    *,
    key: str | None = None,
    detached: bool = False,
    suspend_after: Seconds | None = None,
    retry: Retry | None = None,
    attempt_timeout: Seconds | None = None,
    step_timeout: Seconds | None = None,
    delivery: Delivery | None = None,
) -> Coroutine[Any, Any, Any]:
    """Adds a step to the run that the handler is called for, and returns its response: `await delegate(…)`.

    `method` is a function of a generated servicer, as for Workflow.step. The step is durable, is run by whichever
    worker serves it, and is never run twice for the same `key`: when the handler is called again, it answers at once.
    By default the key is the method's name with its number among the calls of that name in this attempt; the calls must
    then come in the same order in every attempt. `detached` hands the step over: nobody waits for it, and None is
    returned once it is durable.

    Where the handler has waited for `suspend_after` seconds (by default those of the Worker), or the worker stops, the
    handler is cancelled; Baton calls it again when one of the steps has ended. The other options are those of
    Workflow.step; they can only narrow what the handler's own step has.

    Raises StepFailed where the step has failed for good; BatonError where Baton refuses it (Conflict for a key that was
    used with another method or request, NotFound for a method that nobody serves, Unavailable for too many steps);
    LookupError outside a handler of a call from Baton; BindError for what cannot be right.
    """
    target = method_of(method)
    path = path_of(target)
    if not isinstance(request, Message) or descriptor_of(request).full_name != target.input_type.full_name:
        raise BindError(f"{path} takes {target.input_type.full_name}, not {type(request).__name__}")
    attempt = current().attempt_under_way
    asked = step_service_pb2.DelegateRequest(
        key=_checked(key) if key is not None else attempt.next_key(snake_case(target.name)[:_NAME_LIMIT]),
        method=path,
        request=pack(request),
        detached=detached,
    )
    where = f"the delegated step {asked.key!r}"
    if retry is not None:
        asked.retry.CopyFrom(retry.message())
    if attempt_timeout is not None:
        asked.attempt_timeout.CopyFrom(duration(attempt_timeout, f"{where}: attempt_timeout"))
    if step_timeout is not None:
        asked.step_timeout.CopyFrom(duration(step_timeout, f"{where}: step_timeout"))
    if delivery is not None:
        asked.delivery = delivery.value
    output = None if detached else message_factory.GetMessageClass(target.output_type)
    return _answer(attempt, asked, output, _seconds(suspend_after))


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in the worker's event loop and waits for its result: `blocking(delegate(…))`.

    For handlers that are not async, which wait in their thread. Where the attempt is suspended or over, it raises
    asyncio.CancelledError, which `except Exception` lets pass, as an async handler would see it. Raises RuntimeError in
    an event loop, and LookupError outside a handler of a call from Baton.
    """
    try:
        loop = current().attempt_under_way.loop
        _refuse_loop()
    except BaseException:
        work.close()
        raise
    try:
        return asyncio.run_coroutine_threadsafe(work, loop).result()
    except concurrent.futures.CancelledError:
        raise asyncio.CancelledError from None


async def _answer(
    attempt: Attempt,
    request: step_service_pb2.DelegateRequest,
    output: type[Message] | None,
    suspend_after: float | None,
) -> Message | None:
    step = await attempt.here(lambda here: here.delegate(request, suspend_after))
    if step.state in (run_pb2.STEP_STATE_FAILED, run_pb2.STEP_STATE_CANCELLED) and output is not None:
        failure = failure_pb2.Failure()
        failure.CopyFrom(step.failure)
        if not step.HasField("failure"):
            failure.code, failure.reason, failure.message = 1, "CANCELLED", "the step was cancelled"
        raise StepFailed(step.step, failure)
    if output is None:
        return None
    return unpack(step.output, output) if step.output.type_url else output()


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key) or key == _OWN_KEY:
        raise BindError(
            f"{key!r} is not a key: at most 63 lower-case letters, digits, `_` and `-`, starting with a letter, other "
            f"than {_OWN_KEY!r}"
        )
    return key


def _seconds(value: Seconds | None) -> float | None:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _refuse_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("blocking(…) would block the event loop: write await in its place")
