"""An event loop on virtual time, whose schedule comes from a seed.

Everything that runs belongs to an `Actor`: a replica's process, the thread of its lease, the network, a client. Within
an actor callbacks run in the order that asyncio promises; which actor is next is drawn. An actor can be frozen, as a
process is by SIGSTOP, and killed: then nothing of it runs any more, not even a `finally`. Time passes only when nobody
has anything to do.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from random import Random
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MOST_CALLBACKS = 300_000
"""Callbacks of one simulation; more than that is a loop that goes round and round."""

BEGIN_SECONDS = 1_000.0


class Stuck(Exception):
    """Nothing can happen any more, or too much has."""


class Actor:
    """Whoever runs: what it has ready, and whether it may. What it hands over from thread to thread goes to `home`."""

    __slots__ = ("context", "dead", "frozen", "home", "loop", "name", "ready")

    def __init__(self, loop: VirtualLoop, name: str, home: Actor | None = None) -> None:
        self.loop, self.name, self.home = loop, name, home
        self.ready: deque[Planned] = deque()
        self.frozen = self.dead = False
        self.context: Context = copy_context()
        self.context.run(_ACTOR.set, self)

    def freeze(self) -> None:
        """Runs nothing until `thaw`."""
        if not self.frozen:
            self.frozen = True
            self.loop.rest(self)

    def thaw(self) -> None:
        """Goes on with all that has become due."""
        if self.frozen:
            self.frozen = False
            self.loop.wake(self)

    def kill(self) -> None:
        """Drops all that it has to do, for ever."""
        self.dead = True
        self.loop.rest(self)
        self.ready.clear()

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts a task of this actor."""
        return self.loop.create_task(work, context=self.context)

    def later(self, seconds: float, call: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
        """Calls something as this actor, after a while."""
        loop = self.loop
        return loop.plan(loop.now + seconds if seconds > 0.0 else loop.now, call, arguments, self.context, self)


_ACTOR: ContextVar[Actor] = ContextVar("actor")


def _nothing() -> None:
    """What is left of a callback that was cancelled."""


class Planned(asyncio.TimerHandle):
    """A callback that is to run: what asyncio's handle is and a simulation has a use for, and whose it is."""

    __slots__ = ("actor",)

    def __init__(
        self, callback: Callable[..., object], arguments: tuple[Any, ...], context: Context, actor: Actor
    ) -> None:
        self._callback, self._args, self._context, self._cancelled = callback, arguments, context, False
        self.actor = actor

    def cancel(self) -> None:
        self._cancelled, self._callback, self._args = True, _nothing, ()

    def __repr__(self) -> str:
        return f"<Planned {self._callback}>"


class NumberedFuture(asyncio.Future[Any]):
    """A future whose place in a set does not depend on its address. What makes it sets its number, which is quicker
    than to hand it over."""

    __slots__ = ("number",)
    number: int

    def __hash__(self) -> int:
        return self.number


class NumberedTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    __slots__ = ("number",)

    def __init__(self, number: int, work: Any, loop: asyncio.AbstractEventLoop, context: Context | None) -> None:
        self.number = number
        super().__init__(work, loop=loop, name="task", context=context)  # A name of its own takes as long as the rest.

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module. `on_fault` is told of exceptions that nobody caught."""

    def __init__(self, draws: Random, on_fault: Callable[[str, BaseException | None], None]) -> None:
        self._on_fault = on_fault
        self.now = BEGIN_SECONDS
        self._draw, self._next_number = draws.random, itertools.count(1).__next__
        self._timers: list[tuple[float, float, int, Planned]] = []
        self._awake: list[Actor] = []
        self._tasks: list[NumberedTask] = []
        self._closed = self._stopped = False
        self.callbacks = 0
        self.main = Actor(self, "main")

    # --- actors

    def wake(self, actor: Actor) -> None:
        """Lets an actor run that has something to do."""
        if actor.ready and not actor.frozen and not actor.dead and actor not in self._awake:
            self._awake.append(actor)

    def rest(self, actor: Actor) -> None:
        """Lets an actor run no more."""
        if actor in self._awake:
            self._awake.remove(actor)

    # --- running

    def stop(self) -> None:
        """Ends `run` after the callback under way."""
        self._stopped = True

    def run(self) -> None:
        """Runs until `stop`. Errors: Stuck."""
        awake, draw, callbacks = self._awake, self._draw, self.callbacks
        asyncio._set_running_loop(self)
        try:
            while not self._stopped:
                while not awake:
                    self._pass_time()
                many = len(awake)
                at = int(draw() * many) if many > 1 else 0
                ready = awake[at].ready
                planned = ready.popleft()
                if not ready:
                    awake[at] = awake[-1]
                    awake.pop()
                if planned._cancelled:
                    continue
                callbacks += 1
                if callbacks > MOST_CALLBACKS:
                    raise Stuck(f"{callbacks} callbacks, and no end")
                try:
                    planned._context.run(planned._callback, *planned._args)
                except Exception as error:
                    self._on_fault(f"a callback failed: {planned}", error)
        finally:
            self.callbacks = callbacks
            asyncio._set_running_loop(None)

    def _pass_time(self) -> None:
        timers, awake = self._timers, self._awake
        if not timers:
            raise Stuck("nobody waits for anything")
        now = timers[0][0]
        if now > self.now:
            self.now = now
        else:
            now = self.now
        while timers and timers[0][0] <= now:
            planned = heappop(timers)[3]
            actor = planned.actor
            if planned._cancelled or actor.dead:
                continue
            ready = actor.ready
            if not ready and not actor.frozen:
                awake.append(actor)
            ready.append(planned)

    def drop(self) -> None:
        """Ends everything that is left, so that no part of it waits for the garbage collector."""
        self._closed = True
        self._timers.clear()
        asyncio._set_running_loop(self)
        try:
            for task in self._tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    try:
                        task.get_coro().close()
                    except (RuntimeError, Exception):
                        pass  # It waits for something in a `finally`.
        finally:
            asyncio._set_running_loop(None)
        self._tasks.clear()
        self._awake.clear()

    # --- what asyncio asks of a loop

    def time(self) -> float:
        return self.now

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if context is None:
            actor = _ACTOR.get(self.main)
            context = copy_context()
        else:
            actor = context.get(_ACTOR, self.main)
        planned = Planned(callback, args, context, actor)
        if not self._closed and not actor.dead:
            ready = actor.ready
            if not ready and not actor.frozen:
                self._awake.append(actor)
            ready.append(planned)
        return planned

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        actor = _ACTOR.get(None)
        if context is None and actor is not None and actor.home is not None:
            context = actor.home.context
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay if delay > 0.0 else self.now, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        if context is None:
            return self.plan(when, callback, args, copy_context(), _ACTOR.get(self.main))
        return self.plan(when, callback, args, context, context.get(_ACTOR, self.main))

    def plan(
        self, when: float, callback: Callable[..., object], arguments: tuple[Any, ...], context: Context, actor: Actor
    ) -> asyncio.TimerHandle:
        """Calls something at a time, as an actor; of what is due at the same, which is first is drawn."""
        planned = Planned(callback, arguments, context, actor)
        if not self._closed:
            heappush(self._timers, (when, self._draw(), self._next_number(), planned))
        return planned

    def create_future(self) -> asyncio.Future[Any]:
        future = NumberedFuture(loop=self)
        future.number = self._next_number()
        return future

    def create_task(
        self, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], *, name: object = None, context: Any = None
    ) -> asyncio.Task[T]:
        task = NumberedTask(self._next_number(), coro, self, context)
        self._tasks.append(task)
        if len(self._tasks) > 4_000:
            self._tasks = [each for each in self._tasks if not each.done()]
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            self._on_fault(str(context.get("message")), context.get("exception"))
