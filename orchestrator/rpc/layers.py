"""What stands around every call, in order: Call, Layer and the one interceptor that runs them.

The interceptor is also the outermost guard: it reads and writes the messages itself, so that neither a message that
cannot be read nor an exception that nobody foresaw reaches the caller as text. What a layer does is in its own module.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, cast

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import (
    BatonError,
    InvalidRequest,
    PayloadTooLarge,
    ShuttingDown,
    TooManyRequests,
    WatchTooSlow,
)
from orchestrator.engine.ownership import RunElsewhere
from orchestrator.engine.room import SMALL_READ_BYTES, ReadRoom
from orchestrator.engine.updates import Encoded
from orchestrator.rpc import errors
from orchestrator.rpc.receipts import LARGE_METHODS, Receipts
from orchestrator.rpc.room import RequestRoom

REQUEST_LIMIT_BYTES = (4 << 20) + (64 << 10)
"""Size of a request: a contract of 4 MiB and what goes around it."""

WRITE_SECONDS = 30.0
"""How long a caller may take nothing of what is streamed to it."""

Metadata = Sequence[tuple[str, str | bytes]]
"""Metadata of a call as it came."""

_STATUS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

_HANDLER_KINDS: Mapping[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""Makes a handler, by whether the caller and the server stream."""

_log = logging.getLogger(__name__)
_caller: ContextVar[Caller] = ContextVar("baton_caller")


class CallerLeft(Exception):
    """The caller is not there any more; the cause is what grpc raised when it was to be told something."""


@dataclass(slots=True)
class Call:
    """One call on its way: `method` is `/package.Service/Method`, `service` the name in it. `request`, and `raw` as it
    came, are None where the caller streams, `caller` until it is known. `forwarded`: another replica sent it on."""

    method: str
    service: str
    request: Message | None
    raw: bytes | None
    metadata: Metadata
    context: grpc.aio.ServicerContext[Any, Any]
    unary: bool
    caller: Caller | None = None
    forwarded: bool = False

    async def end(self, code: int, message: str, status: bytes | None) -> NoReturn:
        """Ends the call with an error that is told as it is; `status` is a serialized google.rpc.Status."""
        details = () if status is None else ((_STATUS_KEY, status),)
        try:
            await self.context.abort(_CODES[code], message, details)
        except grpc.aio.InternalError as error:
            # Nobody is there any more to be told: the deadline of the call was over first.
            raise CallerLeft from error
        raise AssertionError("abort raises")

    def set_caller(self, caller: Caller) -> None:
        """Says who calls; servicers read it with `current_caller`."""
        self.caller = caller
        _caller.set(caller)


Forward = Callable[[Call, RunElsewhere], Awaitable[bytes]]
"""Has a call served by another replica and returns its answer. Raises what the caller is to be told."""

Leave = Callable[[BaseException | None], None]
"""Does what a layer does after a call; told the error that ended it, None where it was answered. Raises nothing."""


class Layer(Protocol):
    """Something that stands around calls; its errors are told to the caller like those of a handler."""

    def enter(self, call: Call) -> Leave | None:
        """Does what comes before the handler; returns what is to be done after it, None for nothing."""
        ...


@dataclass(frozen=True, slots=True)
class _Method:
    """A method as it is served: `handle` takes and gives messages, `read` and `write` are between them and bytes."""

    name: str
    service: str
    handle: Callable[[Any, Any], Any]
    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]
    request_streaming: bool
    response_streaming: bool
    unary: bool
    background: bool

    @classmethod
    def of(cls, name: str, service: str, handler: grpc.RpcMethodHandler[Any, Any], background: bool) -> _Method:
        """Describes what a handler of generated code serves."""
        return cls(
            name,
            service,
            _behaviour(handler),
            _reader(name, handler.request_deserializer or bytes),
            _writer(handler.response_serializer),
            handler.request_streaming,
            handler.response_streaming,
            not (handler.request_streaming or handler.response_streaming),
            background,
        )


def current_caller() -> Caller:
    """Returns who makes the call that this task serves."""
    return _caller.get()


class LayerInterceptor(grpc.aio.ServerInterceptor):
    """Runs the layers around every handler and turns every error into a rich status.

    Methods of `background_services` (health, reflection) do not hold up a server that stops: see `refuse_calls`.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        background_services: frozenset[str],
        forward: Forward | None = None,
        room: RequestRoom | None = None,
        read_room: ReadRoom | None = None,
        write_seconds: float = WRITE_SECONDS,
        receipts: Receipts | None = None,
    ) -> None:
        self._layers, self._forward, self._room = tuple(layers), forward, room or RequestRoom()
        self._read_room, self._write_seconds = read_room, write_seconds
        self._receipts = receipts or Receipts()
        self._background_services = background_services
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._foreground: set[asyncio.Task[Any]] = set()
        self._ended: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusing = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Finds the handler and stands around it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        guarded = self._guarded.get(method)
        if guarded is None:
            guarded = self._guarded[method] = self._guard(method, handler)
        if method in LARGE_METHODS and not await self._receipts.begin():
            return self._refused(method)
        return guarded

    async def refuse_calls(self, grace_seconds: float, answer_seconds: float) -> None:
        """Tells every new call to try another replica, from now on. Those that are served have `grace_seconds` to end,
        but for those of the background services; what is left is told the same and has `answer_seconds` for it."""
        self._refusing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        left = {*self._background, *self._foreground}
        for task in left:
            self._ended.add(task)
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=answer_seconds)

    def _refused(self, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Makes a handler that refuses a call; it takes a stream, which it does not read."""
        error = TooManyRequests("too many large requests are being received; send this one again later")

        async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await _abort(method, error, context)

        return grpc.stream_unary_rpc_method_handler(cast(Any, refuse))

    def _guard(self, name: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        service = name.rpartition("/")[0].lstrip("/")
        method = _Method.of(name, service, handler, service in self._background_services)
        is_large = name in LARGE_METHODS

        async def serve(raw: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
            if is_large:
                self._receipts.end()
            try:
                if self._refusing:
                    await _abort(name, _shutting_down(), context)
                return await self._answer_or_abort(method, raw, context)
            except grpc.aio.AbortError as aborted:
                # grpc keeps it with the context. What it leads to, by its frames and what it was raised after, must not
                # lead back: refused requests would be cycles, which the collector finds after thousands of them.
                del raw, context
                aborted.__context__ = aborted.__cause__ = None
                raise aborted.with_traceback(None)  # noqa: B904

        make = _HANDLER_KINDS[method.request_streaming, method.response_streaming]
        # Streams are written by `context.write` inside `serve`, which serializes there.
        guarded: grpc.RpcMethodHandler[Any, Any] = make(
            serve, response_serializer=method.write if method.response_streaming else None
        )
        return guarded

    async def _answer_or_abort(
        self, method: _Method, raw: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> bytes | None:
        """Serves a call; what stops it is told to its caller, whatever it is."""
        self._enter(method.background)
        taken = 0
        try:
            if not method.request_streaming:
                taken = self._room.take(len(raw))
            return await self._serve(method, raw, context)
        except grpc.aio.AbortError:
            raise  # A handler has set the status itself.
        except CallerLeft as left:
            raise left.__cause__ or left from None  # grpc takes its own error for what it is.
        except asyncio.CancelledError as error:
            # grpc leaves a call that it has not cancelled itself without an answer.
            cause = self._cause_of_cancellation(error)
            try:
                await _abort(method.name, cause, context)
            except (grpc.aio.UsageError, grpc.aio.InternalError):
                # The caller has left just before, or reads nothing of what is being written: nobody is to be told.
                raise error from None
        except NotImplementedError as error:
            # What generated servicers raise for a method that is not served, with this code set.
            if context.code() != grpc.StatusCode.UNIMPLEMENTED:
                await _abort(method.name, error, context)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method.name} is not served")
        except Exception as error:  # whatever it is, the caller is told nothing of it
            await _abort(method.name, error, context)
        finally:
            self._room.give(taken)
            self._leave(method.background)

    async def _serve(self, method: _Method, raw: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
        """Reads a request and goes through the layers to the handler and back. Streams have no answer."""
        request = _read_all(raw, method.read) if method.request_streaming else method.read(raw)
        call = Call(
            method.name,
            method.service,
            request if isinstance(request, Message) else None,
            None if method.request_streaming else raw,
            tuple(context.invocation_metadata() or ()),
            context,
            method.unary,
        )
        leaving: list[Leave] = []
        answer: bytes | None = None
        try:
            for layer in self._layers:
                leave = layer.enter(call)
                if leave is not None:
                    leaving.append(leave)
            if method.response_streaming:
                patience = None if method.request_streaming else self._write_seconds
                await _stream(method.name, method.handle, request, context, patience)
            else:
                answer = await self._answer(call, method, request)
                if self._read_room is not None and len(answer) > SMALL_READ_BYTES:
                    hold_answer(self._read_room, len(answer), context, self._write_seconds)
        except BaseException as error:
            _leave(leaving, error)
            raise
        _leave(leaving, None)
        return answer

    async def _answer(self, call: Call, method: _Method, request: Any) -> bytes:
        """Serves a call that has one answer, here or at the replica that the handler names."""
        try:
            return method.write(await method.handle(request, call.context))
        except RunElsewhere as error:
            if self._forward is None:
                raise
            elsewhere = error
        return await self._forward(call, elsewhere)

    def _cause_of_cancellation(self, error: asyncio.CancelledError) -> BaseException:
        """Returns what ended the call where grpc did not; where it did, because the caller left or the grace of a
        stopping server was over, raises `error` again."""
        task = asyncio.current_task()
        assert task is not None
        if task in self._ended:
            task.uncancel()
            return _shutting_down()
        if task.cancelling():
            raise error
        return error

    def _enter(self, background: bool) -> None:
        task = asyncio.current_task()
        assert task is not None
        if background:
            self._background.add(task)
        else:
            self._foreground.add(task)
            self._idle.clear()

    def _leave(self, background: bool) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._ended:
            self._ended.discard(task)
        if background:
            self._background.discard(task)
            return
        self._foreground.discard(task)
        if not self._foreground:
            self._idle.set()


def hold_answer(room: ReadRoom, size: int, context: grpc.aio.ServicerContext[Any, Any], longest_seconds: float) -> None:
    """Counts an answer until its caller has taken it, or has not for so long: nobody can keep others from reading."""
    room.hold(size)
    late = asyncio.get_running_loop().call_later(longest_seconds, room.give, size)

    def taken(_: object) -> None:
        if late.when() > asyncio.get_running_loop().time():
            late.cancel()
            room.give(size)

    context.add_done_callback(cast(Any, taken))


def _too_slow(seconds: float) -> WatchTooSlow:
    return WatchTooSlow(f"nothing of this stream was read for {seconds:g} s; watch again from the last cursor read")


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("this replica is shutting down; try another")


async def _abort(method: str, error: BaseException, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
    """Ends a call with what its caller is told of `error`.

    The whole of an error that nobody foresaw goes to the log and nowhere else; so does one that cannot be rendered.
    """
    if isinstance(error, BatonError) and errors.is_expected(error):
        try:
            status = errors.to_status(error)
        except Exception as fault:  # it must not get past this, whatever it is
            error = fault
        else:
            await context.abort_with_status(rpc_status.to_status(status))
    error_id = errors.new_error_id()
    _log.error("call failed", extra={"method": method, "error_id": error_id}, exc_info=error)
    await context.abort_with_status(rpc_status.to_status(errors.to_status(errors.internal_error(error_id))))


def _leave(leaving: Sequence[Leave], error: BaseException | None) -> None:
    for leave in reversed(leaving):
        leave(error)


def _behaviour(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[[Any, Any], Any]:
    behaviour: Callable[[Any, Any], Any] | None = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    assert behaviour is not None
    return behaviour


def _reader(method: str, deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(raw: bytes) -> Any:
        if len(raw) > REQUEST_LIMIT_BYTES:
            raise PayloadTooLarge(
                f"the request has {len(raw)} bytes; send at most {REQUEST_LIMIT_BYTES}",
                metadata={"size": str(len(raw)), "limit": str(REQUEST_LIMIT_BYTES)},
            )
        try:
            return deserialize(raw)
        except (DecodeError, UnicodeDecodeError):
            raise InvalidRequest(
                f"the request is not a message that {method} takes; send its request type in binary protobuf"
            ) from None

    return read


def _writer(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    """Serializes answers, but for those that were encoded once for many callers."""

    def write(message: Any) -> bytes:
        if isinstance(message, Encoded):
            return message.data
        return serialize(message) if serialize is not None else bytes(message)

    return write


async def _read_all(source: AsyncIterator[bytes], read: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for raw in source:
        yield read(raw)


async def _stream(
    method: str,
    handle: Callable[[Any, Any], Any],
    request: Any,
    context: grpc.aio.ServicerContext[Any, Any],
    patience_seconds: float | None,
) -> None:
    """Sends what a handler yields. A cancelled call closes the handler's generator before this ends.

    A caller who takes nothing for `patience_seconds` is told so, behind what it has not taken yet. Until it takes that
    or is gone, what it holds of the handler is not given back: gRPC still has the message.
    """
    answer = handle(request, context)
    if inspect.isawaitable(answer):
        await answer  # The handler writes to the context itself.
        return
    async with aclosing(answer) as responses:
        async for response in responses:
            try:
                async with asyncio.timeout(patience_seconds):
                    await context.write(response)
            except TimeoutError:
                await _abort(method, _too_slow(patience_seconds or 0.0), context)
            except grpc.aio.InternalError:
                # That the caller has left is told to the write before it is to the call.
                raise CallerLeft from asyncio.CancelledError()
