"""What every worker must do that serves baton.worker.v1.WorkerService, in any language.

A test module subclasses `WorkStreamConformance` under a name that pytest collects, and gives the fixture `address`: of
a worker which serves `pricing.v1.PricingService` (see tests/node/protos). Requests and responses are read as bytes
of that contract, given by the fixture `pricing`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from baton.worker.v1 import work_pb2, work_pb2_grpc
from google.rpc import code_pb2, error_details_pb2

from tests.acceptance.contracts import Contract
from tests.sdk.work_double import BatonHalf, WorkDouble

SERVICE = "pricing.v1.PricingService"
QUOTE, FAIL, HANG, CANCELLED = (f"{SERVICE}/{method}" for method in ("Quote", "Fail", "Hang", "Cancelled"))


class WorkStreamConformance:
    """The suite. Each test has a session of its own."""

    @pytest.fixture
    async def double(self, address: str, request: pytest.FixtureRequest) -> AsyncIterator[WorkDouble]:
        """A replica with a stream to the worker."""
        double = WorkDouble(BatonHalf(request.node.name, resume_seconds=60))
        await double.dial(address)
        yield double
        double.acknowledge()
        for number, given in double.half.given.items():
            if given.open:
                double.cancel(number)
        await double.until(lambda: not any(given.open for given in double.half.given.values()))
        await double.close()

    async def test_the_opening_says_who_answers_and_gives_credit(self, double: WorkDouble) -> None:
        opening = double.half.opening
        assert opening is not None
        assert opening.worker
        assert opening.instance_id
        assert opening.credit > 0
        assert not opening.held

    async def test_a_call_is_answered_and_told_what_unary_calls_are_told(
        self, double: WorkDouble, pricing: Contract
    ) -> None:
        item = pricing.of("Item")(name="wood")
        request = pricing.of("QuoteRequest")(item=item)
        request.price_by_material["wood"].minor_units = 7
        number = double.give(
            QUOTE,
            request,
            run_id="run",
            step="quote",
            attempt=2,
            delivery=3,
            epoch=4,
            idempotency_key="key",
            step_token="token",
            traceparent=f"00-{0xABC:032x}-{0xDEF:016x}-01",
        )
        answer = pricing.of("QuoteResponse").FromString((await double.outcome(number)).response)
        assert answer.net.minor_units == 7
        assert dict(answer.metadata) == {
            "idempotency-key": "key",
            "baton-run": "run",
            "baton-step": "quote",
            "baton-attempt": "2",
            "baton-delivery": "3",
            "baton-epoch": "4",
            "baton-step-token": "token",
            "traceparent": f"00-{0xABC:032x}-{0xDEF:016x}-01",
        }

    async def test_many_calls_come_in_one_frame_and_each_is_answered(
        self, double: WorkDouble, pricing: Contract
    ) -> None:
        numbers = [double.give(CANCELLED) for _ in range(50)]
        for number in numbers:
            assert (await double.outcome(number)).WhichOneof("result") == "response"
        answering = [frame for frame in double.frames if frame.outcomes]
        assert len(answering) < len(numbers)

    async def test_a_failure_is_a_status_with_its_details(self, double: WorkDouble, pricing: Contract) -> None:
        number = double.give(FAIL, pricing.of("FailRequest")(reason="SOLD_OUT", message="nothing left"))
        status = (await double.outcome(number)).status
        assert (status.code, status.message) == (code_pb2.FAILED_PRECONDITION, "nothing left")
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == "SOLD_OUT"

    async def test_what_cannot_be_served_is_answered_as_by_a_server(self, double: WorkDouble) -> None:
        absent = double.give(f"{SERVICE}/Absent")
        own = double.give("baton.worker.v1.WorkerService/Work")
        broken = double.give(QUOTE, b"\xff\xff\xff")
        assert (await double.outcome(absent)).status.code == code_pb2.UNIMPLEMENTED
        assert (await double.outcome(own)).status.code == code_pb2.UNIMPLEMENTED
        assert (await double.outcome(broken)).status.code == code_pb2.INVALID_ARGUMENT

    async def test_a_call_that_takes_too_long_is_late(self, double: WorkDouble, pricing: Contract) -> None:
        late = double.give(HANG, pricing.of("HangRequest")(name=double.half.replica_id), timeout_seconds=0.05)
        assert (await double.outcome(late)).status.code == code_pb2.DEADLINE_EXCEEDED
        await self._heard_of_its_end(double, pricing)

    async def test_a_cancelled_call_has_an_outcome_and_its_handler_hears_of_it(
        self, double: WorkDouble, pricing: Contract
    ) -> None:
        number = double.give(HANG, pricing.of("HangRequest")(name=double.half.replica_id))
        await double.outcome(double.give(CANCELLED))  # so the handler has begun
        double.cancel(number)
        assert (await double.outcome(number)).status.code == code_pb2.CANCELLED
        await self._heard_of_its_end(double, pricing)

    async def test_calls_beyond_the_slots_wait_in_order(self, double: WorkDouble, pricing: Contract) -> None:
        credit = double.half.credit
        hanging = [double.half.give(HANG, pricing.of("HangRequest")()) for _ in range(credit)]
        waiting = double.give(CANCELLED)
        double.cancel(hanging[0])
        assert (await double.outcome(waiting)).WhichOneof("result") == "response"
        assert (await double.outcome(hanging[0])).status.code == code_pb2.CANCELLED
        assert sum(given.open for given in double.half.given.values()) == credit - 1

    async def test_what_is_held_outlives_the_stream(self, double: WorkDouble, pricing: Contract, address: str) -> None:
        double.half.acknowledging = False
        done, hanging = double.give(CANCELLED), double.give(HANG, pricing.of("HangRequest")())
        first = await double.outcome(done)
        await double.hang_up()
        await double.dial(address)
        opening = double.half.opening
        assert opening is not None
        assert set(opening.held) == {done, hanging}
        given = double.half.given[done]
        await double.until(lambda: len(given.outcomes) == 2)
        assert given.outcomes[1] == first
        assert not double.half.given[hanging].outcomes

    async def test_what_was_acknowledged_is_forgotten(self, double: WorkDouble, address: str) -> None:
        number, later = double.give(CANCELLED), None
        await double.outcome(number)
        later = double.give(CANCELLED)  # acknowledges the first, if not before
        await double.outcome(later)
        hanging = double.give(HANG)
        await double.hang_up()
        await double.dial(address)
        opening = double.half.opening
        assert opening is not None
        assert number not in opening.held
        double.cancel(hanging)

    async def test_a_new_stream_takes_the_place_of_the_old(self, double: WorkDouble, address: str) -> None:
        hanging = double.give(HANG)
        settled = double.give(CANCELLED)
        await double.outcome(settled)
        old = double.half.opening
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = work_pb2_grpc.WorkerServiceStub(channel)
            call = stub.Work()
            await call.write(double.half.begin())
            answer = await call.read()
            assert hanging in answer.opening.held
            assert old is not None
            assert answer.opening.instance_id == old.instance_id
            await double.until(lambda: double.code is not None)
            call.cancel()
        await double.dial(address)
        double.cancel(hanging)
        await double.outcome(hanging)

    async def test_another_replica_has_a_session_of_its_own(self, double: WorkDouble, address: str) -> None:
        hanging = double.give(HANG)
        other = WorkDouble(BatonHalf("another"))
        await other.dial(address)
        assert other.half.opening is not None
        assert not other.half.opening.held
        number = other.give(CANCELLED)
        assert (await other.outcome(number)).WhichOneof("result") == "response"
        assert not double.half.given[hanging].outcomes
        await other.close()

    async def test_a_session_that_is_not_taken_up_again_is_forgotten(self, address: str, pricing: Contract) -> None:
        short = WorkDouble(BatonHalf("short", resume_seconds=0.05))
        await short.dial(address)
        number = short.give(HANG, pricing.of("HangRequest")(name="short"))
        settled = short.give(CANCELLED)
        await short.outcome(settled)
        await short.hang_up()
        other = WorkDouble(BatonHalf("witness"))
        await other.dial(address)
        await self._heard_of_its_end(other, pricing, "short")
        short.half.forget()
        await short.dial(address)
        assert short.half.opening is not None
        assert not short.half.opening.held
        assert not short.half.given[number].outcomes
        await short.close()
        await other.close()

    async def test_both_sides_beat_and_a_silent_stream_is_ended(self, address: str) -> None:
        double = WorkDouble(BatonHalf("beating", heartbeat_seconds=0.1))
        await double.dial(address)
        await double.until(lambda: sum(not frame.ByteSize() for frame in double.frames) >= 3)
        assert double.code is None
        double.beating = False
        await double.until(lambda: double.code is not None)
        await double.close()

    async def test_an_idle_stream_ends_when_baton_has_drained(self, address: str) -> None:
        double = WorkDouble(BatonHalf("draining"))
        await double.dial(address)
        number = double.give(CANCELLED)
        double.drain()
        assert (await double.outcome(number)).WhichOneof("result") == "response"
        await double.close()

    @pytest.mark.parametrize(
        "frame",
        [
            work_pb2.BatonFrame(),
            work_pb2.BatonFrame(opening=work_pb2.BatonOpening(heartbeat_us=1, resume_us=1)),
            work_pb2.BatonFrame(opening=work_pb2.BatonOpening(replica_id="a", resume_us=1)),
        ],
        ids=["no opening", "no replica", "no heartbeat"],
    )
    async def test_a_stream_without_a_right_opening_is_refused(self, address: str, frame: work_pb2.BatonFrame) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = work_pb2_grpc.WorkerServiceStub(channel)
            call = stub.Work()
            await call.write(frame)
            async with asyncio.timeout(20):
                assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT

    async def test_ids_that_do_not_rise_end_the_stream(self, address: str) -> None:
        double = WorkDouble(BatonHalf("falling"))
        await double.dial(address)
        double.half.give(CANCELLED)
        number = double.half.give(CANCELLED)
        double.half.given[number].assignment.id = 1
        double.give(CANCELLED)
        await double.until(lambda: double.code is not None)
        assert double.code is grpc.StatusCode.INVALID_ARGUMENT
        await double.close()

    async def _heard_of_its_end(self, double: WorkDouble, pricing: Contract, name: str = "") -> None:
        """Waits until the handler of Hang has heard that its call is over."""
        wanted = name or double.half.replica_id
        names: list[str] = []
        async with asyncio.timeout(20):
            while wanted not in names:
                outcome = await double.outcome(double.give(CANCELLED))
                names = list(pricing.of("CancelledResponse").FromString(outcome.response).names)
