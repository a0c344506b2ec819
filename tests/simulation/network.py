"""What lies between replicas and the database: time, and everything that can go wrong with a statement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from orchestrator.domain.errors import BatonError, DatabaseUnavailable
from orchestrator.engine.ports import LeaseLost, WriteRefused
from tests.simulation.leases import Locked
from tests.simulation.loop import Actor
from tests.simulation.tally import Tally

T = TypeVar("T")


class Unreachable(Exception):
    """A call has no answer: the process is gone, or the time is over."""


TOLD = (LeaseLost, WriteRefused, BatonError)
"""Errors that the database answers with; others are faults of the simulation."""


READS = frozenset(
    {
        "count_unfinished",
        "emptied",
        "find_owner",
        "find_request",
        "get_contracts",
        "get_revision",
        "get_run",
        "get_schedule",
        "list_approvals",
        "list_limits",
        "list_namespaces",
        "list_owned",
        "list_schedule_runs",
        "list_schedules",
        "list_unfinished",
        "list_workers",
        "marked",
        "next_due_time",
        "oldest_parked",
        "read",
        "settle",
    }
)
"""Statements that change nothing: each tells what it saw as it began, whenever its answer comes."""

JOURNAL = "write"
"""The statement that writes the journal."""

LATEST_SECONDS = 3.0
"""Longest that a statement goes on whose connection was cut, or a commit takes."""

LONG_COMMIT_CHANCE = 0.1


@dataclass(slots=True)
class Weather:
    """How things are at the moment. Chances are parts of one, times are seconds."""

    lost_before: float = 0.0
    """A statement never comes to the database."""
    lost_after: float = 0.0
    """It is carried out, and the answer is lost."""
    late: float = 0.0
    """The connection is cut, which the one side learns at once, and the statement goes on for a while."""
    commits: float = 0.0
    """A commit of the journal meets one of these, whatever becomes of other statements."""
    cut_links: float = 0.0
    """A stream between two replicas is cut as something is sent."""
    late_of: dict[str, float] = field(default_factory=dict)
    """The same as `late`, of the statements of one name."""
    tardy_of: dict[str, float] = field(default_factory=dict)
    """The answer of a statement of that name takes long."""
    long_of: dict[str, float] = field(default_factory=dict)
    """The commit of a statement of that name takes long."""
    stale: float = 0.0
    """A read is long under way: what it tells is of the past when it comes."""
    slow: float = 1.0
    """Factor of all times."""
    outage_until: float = 0.0
    """Until when the database is away."""


class Trace:
    """What happened, line by line."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.lines: list[str] = []

    def __call__(self, who: str, what: str) -> None:
        """Adds a line."""
        self.lines.append(f"{self._now():.6f} {who}: {what}")


class StatementLink:
    """Implements stores.Link: the connection of one process to the database."""

    def __init__(
        self,
        name: str,
        network: Actor,
        draws: Random,
        stale_draws: Random,
        weather: Weather,
        trace: Trace,
        tally: Tally,
    ) -> None:
        self._name, self.network, self._stale_draws = name, network, stale_draws
        self.weather, self._trace, self.tally = weather, trace, tally
        self.draw = draws.random
        """Draws a number from 0 to 1."""

    async def ask(
        self,
        name: str,
        begin: Callable[[], T],
        commit: Callable[[], T] | None = None,
        release: Callable[[], None] | None = None,
    ) -> T:
        """See Link.ask."""
        answer: asyncio.Future[T] = self.network.loop.create_future()
        statement = _Statement(self, name, begin, commit, release, answer)
        self.network.later(self.seconds(), statement.arrive)
        return await answer

    def seconds(self) -> float:
        """How long one way takes."""
        return (0.0005 + self.draw() * 0.006) * self.weather.slow

    def commit_seconds(self, name: str) -> float:
        """How long a commit takes; now and then very long where things are slow."""
        if self.weather.long_of and self.draw() < self.weather.long_of.get(name, 0.0):
            return self.draw() * LATEST_SECONDS
        if self.weather.slow > 1.0 and self.draw() < LONG_COMMIT_CHANCE:
            return self.draw() * LATEST_SECONDS
        return self.seconds() / 2

    def answer(self, future: asyncio.Future[Any], outcome: Any, more_seconds: float = 0.0) -> None:
        """Sends an answer back."""
        self.network.later(self.seconds() + more_seconds, _settle, future, outcome)

    def hold(self, name: str) -> tuple[float, float]:
        """How long a statement is under way, beyond what all are, before it sees anything, and after."""
        draws = self._stale_draws
        if name not in READS or draws.random() >= self.weather.stale:
            return 0.0, 0.0
        seconds = draws.random() ** 2 * LATEST_SECONDS
        before = seconds * draws.choice((0.0, 0.0, draws.random(), 1.0))
        return before, seconds - before

    def is_late_in_commit(self) -> bool:
        """Draws whether a statement whose connection was cut goes on late, or holds its locks for so long."""
        return self.weather.stale > 0.0 and self._stale_draws.random() < 0.5

    def note(self, what: str) -> None:
        """Adds to the trace."""
        self._trace(self._name, what)


class _Statement:
    """One statement on its way."""

    __slots__ = ("_answer", "_begin", "_commit", "_held_seconds", "_link", "_name", "_release", "_told")

    def __init__(
        self,
        link: StatementLink,
        name: str,
        begin: Callable[[], Any],
        commit: Callable[[], Any] | None,
        release: Callable[[], None] | None,
        answer: asyncio.Future[Any],
    ) -> None:
        self._link, self._name, self._answer = link, name, answer
        self._begin, self._commit, self._release = begin, commit, release
        self._told, self._held_seconds = True, 0.0  # How long it is under way once it has begun, where that is long.

    def arrive(self) -> None:
        """The statement is at the database."""
        link = self._link
        weather, network, draw = link.weather, link.network, link.draw()
        if network.loop.now < weather.outage_until or draw < weather.lost_before:
            link.note(f"{self._name} is lost")
            self._count_unknown(landed=False)
            link.answer(self._answer, unavailable())
            return
        draw -= weather.lost_before
        more = weather.commits / 2 if self._name == JOURNAL else 0.0
        if draw < weather.lost_after + more:
            self._told = False
        elif draw < weather.lost_after + weather.late + 2 * more + weather.late_of.get(self._name, 0.0):
            self._told = False
            link.note(f"{self._name} is cut")
            link.answer(self._answer, unavailable())
            late_seconds = link.draw() * LATEST_SECONDS
            if self._commit is not None and link.is_late_in_commit():
                self._held_seconds = late_seconds
                self._carry_out()
            else:
                network.later(late_seconds, self._carry_out)
            return
        if weather.stale:
            before_seconds, self._held_seconds = link.hold(self._name)
            if before_seconds:
                network.later(before_seconds, self._carry_out)
                return
        self._carry_out()

    def _carry_out(self) -> None:
        try:
            outcome = self._begin()
        except Locked as locked:
            locked.wait(self._go_on)
            return
        except TOLD as error:
            self._tell(error)
            return
        if self._commit is None:
            self._tell(outcome)
        else:
            self._link.network.later(self._held_seconds or self._link.commit_seconds(self._name), self._end)

    def _go_on(self) -> None:
        """What it waited for is free: whoever comes first has it."""
        self._link.network.later(self._link.draw() * 0.001, self._carry_out)

    def _end(self) -> None:
        assert self._commit is not None
        try:
            outcome = self._commit()
        except TOLD as error:
            outcome = error
        finally:
            if self._release is not None:
                self._release()
        self._tell(outcome)

    def _count_unknown(self, *, landed: bool) -> None:
        if self._name == JOURNAL:
            self._link.tally("commits unknown, landed" if landed else "commits unknown, not landed")

    def _tell(self, outcome: Any) -> None:
        link, failed = self._link, isinstance(outcome, Exception)
        shown = type(outcome).__name__ if failed else _shown(outcome)
        if failed and isinstance(outcome, LeaseLost):
            link.tally("leases lost")
        if not self._told:
            self._count_unknown(landed=not failed)
        if shown:
            link.note(f"{self._name} {shown}" if self._told else f"{self._name} {shown}, which is not told")
        if not self._answer.done():
            tardy_of = link.weather.tardy_of
            is_tardy = tardy_of and link.draw() < tardy_of.get(self._name, 0)
            outcome = outcome if self._told else unavailable()
            if self._held_seconds and self._told and not failed:
                link.network.later(self._held_seconds, self._come, outcome)
                return
            link.answer(self._answer, outcome, link.draw() * LATEST_SECONDS if is_tardy else 0.0)

    def _come(self, outcome: Any) -> None:
        """An answer goes back that was long under way."""
        if self._begin() != outcome:
            self._link.tally("answers of the past")
            self._link.note(f"{self._name} tells of the past")
        self._link.answer(self._answer, outcome)


def unavailable() -> DatabaseUnavailable:
    """What a replica is told where it is told nothing."""
    return DatabaseUnavailable("the simulated database does not answer", retry_delay_seconds=0.1)


def _shown(outcome: Any) -> str:
    """What the trace says of an answer; nothing of those that tell nothing."""
    if isinstance(outcome, list):
        return f"gives {len(outcome)}" if outcome else ""
    return ""


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
