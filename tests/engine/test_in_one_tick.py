"""What happens in one turn of the loop: the whole engine on a real Postgres, beside a worker without a network."""

from __future__ import annotations

import asyncio
import time

import pytest
from baton.v1 import run_pb2, run_service_pb2

from benchmarks import hotpath
from orchestrator.domain.errors import RunEnded
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.worker_ports import Answer, Call, CallListener, Sending
from tests.engine.engines import engine_on, submission, until

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED


async def ended(server: hotpath.Server, request: run_service_pb2.SubmitRunRequest) -> run_pb2.Run:
    request.wait_timeout.FromSeconds(20)
    answer = await server.submit(request.SerializeToString(), hotpath.Context())
    return run_service_pb2.SubmitRunResponse.FromString(answer).run


class Late(hotpath.EchoGateway):
    """Answers in time; what the loop does before it turns again takes until after the run's time."""

    def send(self, call: Call, listener: CallListener) -> Sending:
        def stand_still() -> None:
            loop.call_soon(listener.answered, Answer(payload=call.payload))
            time.sleep(0.2)

        loop = asyncio.get_running_loop()
        loop.call_later(max(call.deadline_seconds - 0.1, 0.0), stand_still)
        return self

    def cancel(self) -> None:
        """Nothing is to be cancelled."""


async def test_an_answer_that_has_come_goes_before_a_timer(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotpath, "EchoGateway", Late)
    async with hotpath.Server(database) as server:
        run = await ended(server, submission("W1", run_timeout=1))
    assert (run.state, run.failure.reason) == (SUCCEEDED, "")


async def test_calls_that_cannot_be_made_for_a_while_end_no_run(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [20]

    class Full(hotpath.EchoGateway):
        def send(self, call: Call, listener: CallListener) -> Sending:
            if left[0]:
                left[0] -= 1
                raise OSError(24, "too many open files")
            return super().send(call, listener)

    monkeypatch.setattr(hotpath, "EchoGateway", Full)
    async with hotpath.Server(database) as server:
        runs = await asyncio.gather(*(ended(server, submission("W4")) for _ in range(30)))
    assert left == [0]
    assert {run.state for run in runs} == {SUCCEEDED}
    failures = {attempt.failure.message for run in runs for step in run.steps for attempt in step.attempts}
    assert failures == {"", "the call could not be made"}


@pytest.mark.parametrize(
    ("limits", "work", "size", "most"),
    [
        (EngineLimits(namespace_max_queued_steps=10, max_calls_in_flight=1), "W4", 1, 12),
        (EngineLimits(max_queued_bytes=1 << 20), "W4", 500_000, 3),
        (EngineLimits(max_queued_events=50), "W3", 1, 1),
    ],
)
async def test_limits_hold_within_one_batch_of_submissions(
    database: str, monkeypatch: pytest.MonkeyPatch, limits: EngineLimits, work: str, size: int, most: int
) -> None:
    async with engine_on(database, monkeypatch, limits) as place:
        many = [(hotpath.CALLER, submission(work, "x" * size)) for _ in range(60)]
        answers, _ = await place.engine.runs.submit_many(many)
        assert 1 <= sum(not isinstance(answer, BaseException) for answer in answers) <= most


async def test_an_answer_that_has_come_goes_before_a_verb(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine_on(database, monkeypatch) as place:
        await place.engine.runs.submit_many([(hotpath.CALLER, submission("W1"))])
        await until(lambda: place.worker.calls)
        (live,) = place.driver.runs.values()
        place.worker.answer(0)  # In the turn in which CancelRun comes, just before it.
        with pytest.raises(RunEnded, match="SUCCEEDED"):
            await place.engine.runs.cancel(hotpath.CALLER, live.key.run_id, "")
