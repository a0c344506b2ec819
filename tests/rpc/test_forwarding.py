"""Requests about runs of another replica: two servers over real sockets, each with an engine that a test plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from baton.v1 import run_service_pb2, run_service_pb2_grpc

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import FieldFault, InvalidRequest, OwnerUnavailable, RunEnded
from orchestrator.engine.ownership import AnsweredElsewhere, RunElsewhere
from orchestrator.outbound.replicas import ReplicaRequests
from orchestrator.rpc.forwarding import FORWARD_KEY, TOKEN_SECONDS, Forwarding
from orchestrator.rpc.server import RpcServer
from orchestrator.security.tokens import TokenSigner
from tests.rpc.conftest import make_server
from tests.rpc.fakes import FakeEngine, Told, told

RUN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
CANCEL = run_service_pb2.CancelRunRequest(run_id=RUN_ID, reason="no longer wanted")
CANCEL_METHOD = "/baton.v1.RunService/CancelRun"
KEY, OTHER_KEY = bytes(32), bytes([1]) * 32
ADA = Caller("shop", "ada", "web", "")


def now() -> int:
    return time.time_ns() // 1_000


@dataclass
class Replica:
    """A server with forwarding."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    requests: ReplicaRequests = field(default_factory=ReplicaRequests)
    address: str = ""
    server: RpcServer | None = None
    channel: Any = None

    @property
    def runs(self) -> Any:
        return run_service_pb2_grpc.RunServiceStub(self.channel)

    async def start(self) -> None:
        forwarding = Forwarding(TokenSigner(KEY), self.requests.send, now)
        self.server = make_server(self.engine, forwarding=forwarding)
        self.address = f"127.0.0.1:{await self.server.start()}"
        self.channel = grpc.aio.insecure_channel(self.address)

    async def stop(self) -> None:
        await self.requests.close()
        await self.channel.close()
        assert self.server is not None
        await self.server.stop(0)
        await self.server.close()


@pytest.fixture
async def asked() -> AsyncIterator[Replica]:
    """The replica that clients ask."""
    replica = Replica()
    await replica.start()
    yield replica
    await replica.stop()


@pytest.fixture
async def owner(asked: Replica) -> AsyncIterator[Replica]:
    """The replica that drives the run, as the asked one knows."""
    replica = Replica()
    await replica.start()
    asked.engine.error = RunElsewhere(replica.address)
    yield replica
    await replica.stop()


async def refusal(call: Awaitable[Any]) -> Told:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told(caught.value)


async def test_the_owner_answers_for_the_same_caller(asked: Replica, owner: Replica) -> None:
    metadata = (("baton-channel", "cli"), ("traceparent", f"00-{'1' * 32}-{'2' * 16}-01"))
    answer = await asked.runs.CancelRun(CANCEL, metadata=metadata)
    assert answer.run.run_id == RUN_ID
    assert owner.engine.calls == asked.engine.calls
    name, caller, (run_id, reason) = owner.engine.calls[0]
    assert (name, str(run_id), reason) == ("cancel", RUN_ID, CANCEL.reason)
    assert caller == Caller("default", "anonymous", "cli", f"00-{'1' * 32}-{'2' * 16}-01")


async def test_other_metadata_of_baton_goes_along_and_no_other(asked: Replica, owner: Replica) -> None:
    given: list[tuple[str, str]] = []

    class Seeing:
        def verify_forward(self, *arguments: Any) -> Caller:
            return ADA

        def sign_forward(self, *arguments: Any) -> str:
            return "signed"

    async def send(address: str, method: str, request: bytes, metadata: Any, timeout_seconds: float) -> bytes:
        given.extend(metadata)
        return b""

    replica = Replica()
    forwarding = Forwarding(Seeing(), send, now)
    replica.server = make_server(replica.engine, forwarding=forwarding)
    replica.engine.error = RunElsewhere(owner.address)
    replica.channel = grpc.aio.insecure_channel(f"127.0.0.1:{await replica.server.start()}")
    metadata = (("baton-step-token", "v1.a.b"), ("authorization", "Bearer x"))
    await replica.runs.CancelRun(CANCEL, metadata=metadata)
    assert given == [("baton-step-token", "v1.a.b"), (FORWARD_KEY, "signed")]
    await replica.stop()


@pytest.mark.parametrize(
    "error",
    [
        RunEnded("the run has ended as FAILED", metadata={"state": "FAILED", "ü": "ü"}),
        InvalidRequest("a: no", faults=[FieldFault("a", "INVALID_REQUEST", "no")]),
        OwnerUnavailable("later", retry_delay_seconds=2.5),
    ],
)
async def test_the_errors_of_the_owner_come_unchanged(error: Exception, asked: Replica, owner: Replica) -> None:
    owner.engine.error = error
    through, direct = await refusal(asked.runs.CancelRun(CANCEL)), await refusal(owner.runs.CancelRun(CANCEL))
    assert (through.code, through.text) == (direct.code, direct.text)
    assert (through.info, through.bad_request, through.retry) == (direct.info, direct.bad_request, direct.retry)


async def test_a_request_is_forwarded_once(asked: Replica, owner: Replica) -> None:
    owner.engine.error = RunElsewhere(asked.address)
    answer = await refusal(asked.runs.CancelRun(CANCEL))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE")
    assert answer.retry is not None
    assert (len(asked.engine.calls), len(owner.engine.calls)) == (1, 1)


async def test_an_owner_that_does_not_answer(asked: Replica) -> None:
    asked.engine.error = RunElsewhere("127.0.0.1:1")
    answer = await refusal(asked.runs.CancelRun(CANCEL, timeout=2))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE")
    assert answer.retry is not None
    assert "at 127.0.0.1:1," in answer.text
    assert "BATON_REPLICA_ADDRESS" in answer.text


async def test_an_owner_that_goes_away_while_it_is_waited_for(asked: Replica, owner: Replica) -> None:
    owner.engine.hold = asyncio.Event()
    waiting = asyncio.ensure_future(refusal(asked.runs.CancelRun(CANCEL)))
    await owner.engine.entered.wait()
    assert owner.server is not None
    await owner.server.stop(0)
    await owner.server.close()
    answer = await waiting
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


async def test_the_deadline_goes_along(asked: Replica, owner: Replica) -> None:
    owner.engine.hold = asyncio.Event()
    answer = await refusal(asked.runs.CancelRun(CANCEL, timeout=0.5))
    assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await owner.engine.ended.wait()


async def test_requests_under_way_are_bounded(asked: Replica, owner: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.outbound.replicas.REQUESTS_LIMIT", 1)
    owner.engine.hold = asyncio.Event()
    first = asyncio.ensure_future(asked.runs.CancelRun(CANCEL))
    await owner.engine.entered.wait()
    answer = await refusal(asked.runs.CancelRun(CANCEL))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE")
    owner.engine.hold.set()
    assert (await first).run.run_id == RUN_ID
    assert (await asked.runs.CancelRun(CANCEL)).run.run_id == RUN_ID


async def test_a_caller_that_leaves_ends_the_call_at_the_owner(asked: Replica, owner: Replica) -> None:
    owner.engine.hold = asyncio.Event()
    call = asked.runs.CancelRun(CANCEL)
    await asyncio.sleep(0)
    await owner.engine.entered.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await owner.engine.ended.wait()


async def test_without_forwarding_the_caller_is_told_to_try_again(
    engine: FakeEngine, runs: run_service_pb2_grpc.RunServiceAsyncStub
) -> None:
    engine.error = RunElsewhere("127.0.0.1:1")
    answer = await refusal(runs.CancelRun(CANCEL))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE")


Sign = Callable[[], str]


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param(lambda: "", id="empty"),
        pytest.param(lambda: "v1.e30.AAAA", id="forged"),
        pytest.param(lambda: f"v1.{'e30' * 2_000}.AAAA", id="long"),
        pytest.param(
            lambda: TokenSigner(OTHER_KEY).sign_forward(
                ADA, CANCEL_METHOD, CANCEL.SerializeToString(), now() + 9_000_000
            ),
            id="another key",
        ),
        pytest.param(
            lambda: TokenSigner(KEY).sign_forward(ADA, CANCEL_METHOD, CANCEL.SerializeToString(), now() - 1),
            id="expired",
        ),
        pytest.param(
            lambda: TokenSigner(KEY).sign_forward(
                ADA, CANCEL_METHOD.replace("Cancel", "Get"), CANCEL.SerializeToString(), now() + 9_000_000
            ),
            id="another method",
        ),
        pytest.param(
            lambda: TokenSigner(KEY).sign_forward(ADA, CANCEL_METHOD, b"", now() + 9_000_000), id="another request"
        ),
        pytest.param(lambda: TokenSigner(KEY).sign_relay("127.0.0.1:1"), id="relay token"),
    ],
)
async def test_what_no_replica_signed_for_this_request_is_refused(sign: Sign, owner: Replica) -> None:
    answer = await refusal(owner.runs.CancelRun(CANCEL, metadata=((FORWARD_KEY, sign()),)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "FORWARDING_REFUSED")
    assert owner.engine.calls == []


async def test_what_a_replica_signed_is_the_caller(owner: Replica) -> None:
    expire_time = now() + round(TOKEN_SECONDS * 1_000_000)
    token = TokenSigner(KEY).sign_forward(ADA, CANCEL_METHOD, CANCEL.SerializeToString(), expire_time)
    await owner.runs.CancelRun(CANCEL, metadata=((FORWARD_KEY, token), ("baton-channel", "cli")))
    assert owner.engine.calls[0][1] == ADA


async def test_streams_are_not_forwarded(owner: Replica) -> None:
    request = run_service_pb2.WatchRunRequest(run_id=RUN_ID)
    token = TokenSigner(KEY).sign_forward(
        ADA, "/baton.v1.RunService/WatchRun", request.SerializeToString(), now() + 9_000_000
    )
    owner.engine.error = RunElsewhere("127.0.0.1:1")
    answer = await refusal(anext(aiter(owner.runs.WatchRun(request, metadata=((FORWARD_KEY, token),)))))
    assert answer.reason == "OWNER_UNAVAILABLE"


async def test_a_caller_that_is_gone_when_the_answer_comes_is_no_error(
    owner: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    sent = asyncio.Event()

    async def send(address: str, method: str, request: bytes, metadata: Any, timeout_seconds: float) -> bytes:
        sent.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # The caller has just left, as the owner's answer comes.
            raise AnsweredElsewhere(grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "too late", None) from None
        raise AssertionError

    replica = Replica()
    forwarding = Forwarding(TokenSigner(KEY), send, now)
    replica.server = make_server(replica.engine, forwarding=forwarding)
    replica.engine.error = RunElsewhere(owner.address)
    replica.channel = grpc.aio.insecure_channel(f"127.0.0.1:{await replica.server.start()}")
    call = replica.runs.CancelRun(CANCEL, timeout=20)
    waiting = asyncio.ensure_future(call.code())
    async with asyncio.timeout(10):
        await sent.wait()
    call.cancel()
    assert await waiting is grpc.StatusCode.CANCELLED
    await replica.stop()
    assert [record.getMessage() for record in caplog.records] == []
