"""The agents of the demo: a question, a planner that is killed while it waits for others, and a person who approves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from answers.v1 import answers_pb2
from baton import Client, RunHandle
from baton.v1 import approval_pb2, run_pb2

QUESTION = "How do leases, epochs, fences and journals protect a run?"
REQUESTER, APPROVER = "ann", "bob"

KILLED_AT = 12
"""Delegated steps that have ended when the planner is killed."""

LONGEST_SECONDS = 120.0
LOOK_SECONDS = 0.05


@dataclass(slots=True)
class Answered:
    """What came of the question."""

    run: run_pb2.Run
    approval: approval_pb2.Approval
    published: answers_pb2.PublishResponse
    attempts: int
    """Times that the planner was called."""
    asked: int
    """Steps that it delegated."""
    wrong: list[str]


async def answer(server: str, kill: Callable[[], Awaitable[None]], show: Callable[[str], Awaitable[None]]) -> Answered:
    """Asks, kills the planner in the middle with `kill`, shows with `show` what is to be approved, and approves it."""
    async with Client(server, principal=REQUESTER) as client, Client(server, principal=APPROVER) as person:
        run = await client.submit(
            "answer-question", answers_pb2.AnswerRequest(question=QUESTION), output=answers_pb2.PublishResponse
        )
        async with asyncio.timeout(LONGEST_SECONDS):
            await _delegated(client, run, KILLED_AT)
            await kill()
            approval = await _approval(person, run)
            await show(run.id)
            await person.approve(approval, "reads well")
            published = await run.result(LONGEST_SECONDS)
        ended = await client.get_run(run.id)
        planned = next(step for step in ended.steps if step.step == "plan")
        asked = [step for step in ended.steps if step.parent == "plan"]
        wrong = [f"{step.step} was called {len(step.attempts)} times" for step in asked if len(step.attempts) != 1]
        if not await asyncio.to_thread(Path(published.file).is_file):
            wrong.append(f"{published.file} was not written")
        return Answered(ended, approval, published, len(planned.attempts), len(asked), wrong)


async def _delegated(client: Client, run: RunHandle[answers_pb2.PublishResponse], count: int) -> None:
    """Waits until so many delegated steps have ended."""
    while True:
        seen = await client.get_run(run.id)
        ended = sum(step.state == run_pb2.STEP_STATE_SUCCEEDED for step in seen.steps if step.parent)
        if ended >= count or seen.HasField("end_time"):
            return
        await asyncio.sleep(LOOK_SECONDS)


async def _approval(person: Client, run: RunHandle[answers_pb2.PublishResponse]) -> approval_pb2.Approval:
    """Waits until the report is to be approved."""
    while True:
        async for approval in person.list_approvals(run.id):
            return approval
        if (await person.get_run(run.id)).HasField("end_time"):
            await run.result(1.0)
        await asyncio.sleep(LOOK_SECONDS)
