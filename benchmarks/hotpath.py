"""What one step costs the server besides gRPC: the real engine, doors and journal in one process, without sockets.

Requests go as bytes through the layers of the gRPC door and the engine to an embedded Postgres; a gateway answers every
call at once. Prints the CPU time of this process for each run and step, and with `--parts` where it went.
`python -m benchmarks.hotpath --help` tells the options. What gRPC itself costs is measured by `python -m benchmarks`.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import random
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import uvloop
from baton.v1 import (
    run_pb2,
    run_service_pb2,
    worker_service_pb2,
    workflow_pb2,
)
from google.protobuf import json_format

from benchmarks.contract import SERVICE, DoRequest, workflows
from benchmarks.parts import Parts
from benchmarks.processes import cpu_seconds, memory_mb
from benchmarks.works import CLOSED, TEXT
from orchestrator.app import calm_collector, open_replica_store
from orchestrator.domain.caller import Caller, StepClaim
from orchestrator.engine.api import Runs
from orchestrator.engine.catalogue_ports import EndpointRow
from orchestrator.engine.engine import Engine, Stores
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.observer import fan_out
from orchestrator.engine.worker_ports import Answer, Call, CallListener, Described, Health, Sending
from orchestrator.outbound.breaker import FAIL_MAX, RESET_TIMEOUT_SECONDS
from orchestrator.outbound.gateway import GrpcWorkerGateway
from orchestrator.outbound.hints import GrpcReplicaHints
from orchestrator.outbound.permits import GrpcPermitNetwork
from orchestrator.postgres.approvals import PostgresApprovalStore
from orchestrator.postgres.directory import PostgresReplicaDirectory
from orchestrator.postgres.embedded import EmbeddedPostgres
from orchestrator.postgres.journal import PostgresJournalStore
from orchestrator.postgres.limits import PostgresLimitStore
from orchestrator.postgres.migrate import migrate
from orchestrator.postgres.pool import CLAIM_SETTINGS, JOURNAL_SETTINGS, READ_SETTINGS, Pool, Role
from orchestrator.postgres.replicas import PostgresReplicaStore
from orchestrator.postgres.runs import PostgresRunStore
from orchestrator.postgres.schedules import PostgresScheduleStore
from orchestrator.postgres.scrub import PostgresScrubStore
from orchestrator.postgres.workers import PostgresKeyStore, PostgresWorkerStore
from orchestrator.postgres.workflows import PostgresWorkflowStore
from orchestrator.rpc.authentication import AuthenticationLayer
from orchestrator.rpc.layers import LayerInterceptor
from orchestrator.rpc.observation import SpanLayer
from orchestrator.rpc.run_service import RunService
from orchestrator.rpc.submissions import Submissions
from orchestrator.rpc.validation import RequestValidator, ValidationLayer
from orchestrator.rpc.watches import Watches
from orchestrator.security.credentials import DevelopmentAuthenticator
from orchestrator.security.tokens import TokenSigner
from orchestrator.telemetry.facts import LogObserver
from orchestrator.telemetry.submit_span import untraced

METHOD = "/baton.v1.RunService/SubmitRun"
CALLER = Caller("default", "anonymous", "grpc")
STEPS = {work.name: work.steps for work in CLOSED}
WORKFLOWS = {work.name: work.shape for work in CLOSED}
RUNS = {"W1": 500, "W2": 100, "W3": 60, "W4": 3000}
"""Runs of one measurement at scale 1."""


async def _ask_nowhere(address: str, caller: Caller, method: str, request: bytes, seconds: float) -> bytes:
    raise AssertionError("there is one replica")


class EchoGateway(GrpcWorkerGateway):
    """A worker without a network: answers every call with its request, together with the other calls of the tick."""

    def __init__(self, signer: TokenSigner) -> None:
        super().__init__(FAIL_MAX, RESET_TIMEOUT_SECONDS, signer)
        self._sent: list[tuple[Call, CallListener]] = []

    def send(self, call: Call, listener: CallListener) -> Sending:
        """See worker_ports.WorkerGateway."""
        if not self._sent:
            asyncio.get_running_loop().call_soon(self._answer)
        self._sent.append((call, listener))
        return self

    def cancel(self) -> None:
        """See worker_ports.Sending: no call of a measurement is cancelled."""
        raise AssertionError("a call was cancelled")

    def _answer(self) -> None:
        sent, self._sent = self._sent, []
        for call, listener in sent:
            listener.answered(Answer(payload=call.payload))

    def follow(self, row: EndpointRow, on_change: Callable[[Health, int | None], None]) -> Callable[[], None]:
        """See worker_ports.WorkerGateway."""
        on_change("serving", None)
        return lambda: None

    async def read_descriptors(self, address: str) -> Described:
        """See worker_ports.WorkerGateway."""
        return Described([DoRequest.DESCRIPTOR.file.serialized_pb], [SERVICE], False)


class Context:
    """What the layers ask of grpc's context of a call."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """What a plain client sends."""
        return (("user-agent", "grpc-python-asyncio/1.85.1 grpc-c/55.1.0 (linux; chttp2)"),)

    async def abort_with_status(self, status: grpc.Status) -> None:
        """Ends the measurement: no call of it may fail."""
        raise RuntimeError(status.details)


Serve = Callable[[bytes, Any], Coroutine[Any, Any, bytes]]


class Server:
    """A replica without gRPC: `submit` takes and gives serialized messages."""

    submit: Serve

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Server:
        journal = await self._open(Role.ENGINE, JOURNAL_SETTINGS)
        claims = await self._open(Role.ENGINE, CLAIM_SETTINGS)
        reads = await self._open(Role.API, READ_SETTINGS)
        stores = Stores(
            PostgresJournalStore(journal, reads),
            PostgresRunStore(reads),
            PostgresReplicaStore(claims),
            PostgresWorkflowStore(reads),
            PostgresWorkerStore(reads, claims),
            PostgresApprovalStore(reads),
            PostgresScheduleStore(reads, claims),
            PostgresLimitStore(reads),
            PostgresScrubStore(claims),
            PostgresReplicaDirectory(claims),
        )
        signer = TokenSigner(await PostgresKeyStore(claims).signing_key())
        gateway = EchoGateway(signer)
        self._stack.push_async_callback(gateway.close)
        network = GrpcPermitNetwork(signer)
        self._stack.push_async_callback(network.close)
        hints = GrpcReplicaHints(signer)
        self._stack.push_async_callback(hints.close)
        engine = Engine(
            stores,
            lambda: open_replica_store(self._dsn),
            gateway,
            network,
            hints,
            EngineLimits(),
            fan_out([LogObserver()]),
            lambda live, flight: signer.sign(
                StepClaim(
                    live.key.namespace,
                    live.key.run_id,
                    live.run.steps[flight.step].spec.id,
                    flight.attempt,
                    live.epoch,
                )
            ),
            signer.verify,
            False,
            lambda: "",
            _ask_nowhere,
        )
        self._stack.push_async_callback(engine.stop)
        await engine.start("127.0.0.1:1")
        await engine.workers.register(
            CALLER, worker_service_pb2.RegisterWorkerRequest(worker="noop", address="127.0.0.1:1", max_in_flight=1000)
        )
        for each in workflows():
            await engine.workflows.apply(CALLER, json_format.ParseDict(each, workflow_pb2.Workflow()))
        self.submit = await _door(engine.runs)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _open(self, role: Role, settings: Any) -> Pool:
        pool = await Pool.open(self._dsn, role, settings)
        self._stack.push_async_callback(pool.close)
        return pool


async def _door(runs: Runs) -> Serve:
    """Puts the layers of the gRPC door around SubmitRun."""
    request_type = run_service_pb2.SubmitRunRequest
    validator = RequestValidator([request_type])
    service = RunService(runs, Watches(60.0), Submissions(runs, validator, untraced))
    layers = LayerInterceptor(
        [
            AuthenticationLayer(DevelopmentAuthenticator().authenticate, frozenset()),
            SpanLayer(untraced),
            ValidationLayer(validator, frozenset()),
        ],
        frozenset(),
    )
    handler = grpc.unary_unary_rpc_method_handler(
        service.SubmitRun,
        request_deserializer=request_type.FromString,
        response_serializer=run_service_pb2.SubmitRunResponse.SerializeToString,
    )

    class Details:
        method = METHOD

    async def find(_: object) -> Any:
        return handler

    guarded = await layers.intercept_service(find, Details())  # type: ignore[arg-type]
    assert guarded is not None
    serve: Serve | None = guarded.unary_unary
    assert serve is not None
    return serve


def request_of(work: str) -> bytes:
    """Serializes the request that submits a run of `work` and waits for its end."""
    request = run_service_pb2.SubmitRunRequest(workflow=WORKFLOWS[work], view=run_service_pb2.RUN_VIEW_RESULT)
    request.input.Pack(DoRequest(text=TEXT))
    request.wait_timeout.FromSeconds(60)
    return request.SerializeToString()


async def load_at_rate(submit: Serve, work: str, count: int, runs_per_second: float) -> list[float]:
    """Makes so many runs that come at random at a rate, however fast the others are; answers as `load` does.

    What a run took counts from when it was due.
    """
    request, context, latencies, draw = request_of(work), Context(), [], random.Random(7)
    began = time.perf_counter()

    async def one(due: float) -> None:
        await submit(request, context)
        latencies.append((time.perf_counter() - began - due) * 1e3)

    due = 0.0
    async with asyncio.TaskGroup() as runs:
        for _ in range(count):
            due += draw.expovariate(runs_per_second)
            await asyncio.sleep(max(due - (time.perf_counter() - began), 0))
            runs.create_task(one(due))
    return sorted(latencies)


async def load(submit: Serve, work: str, count: int, in_flight: int) -> list[float]:
    """Makes so many runs, `in_flight` at once; returns what each took, in milliseconds, sorted."""
    request, context, numbers = request_of(work), Context(), iter(range(count))
    latencies: list[float] = []

    async def lane() -> None:
        for _ in numbers:
            began = time.perf_counter()
            await submit(request, context)
            latencies.append((time.perf_counter() - began) * 1e3)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(in_flight):
            lanes.create_task(lane())
    return sorted(latencies)


async def prove(submit: Serve, work: str) -> None:
    """Makes one run and looks at its answer. Errors: RuntimeError where it did not succeed."""
    answer = run_service_pb2.SubmitRunResponse.FromString(await submit(request_of(work), Context()))
    if answer.run.state != run_pb2.RUN_STATE_SUCCEEDED:
        raise RuntimeError(f"a run of {work} did not succeed: {answer.run}")


async def measure(dsn: str, postgres_pid: int, chosen: argparse.Namespace) -> None:
    """Measures each work as chosen and prints a line, or a table of parts, for each."""
    parts = Parts() if chosen.parts else None
    async with Server(dsn) as server:
        calm_collector()
        for work in chosen.works:
            in_flight = chosen.in_flight if work == "W4" else 1
            way = f"{chosen.rate:,.0f} runs/s" if chosen.rate else f"{in_flight:4} in flight"
            count, steps = max(int(RUNS[work] * chosen.scale), 2), STEPS[work]
            await prove(server.submit, work)
            await load(server.submit, work, 1 + count // 5, in_flight)
            if parts is not None:
                submit = parts.around("door", server.submit)
                parts.clear()
                before = time.process_time()
                await load(submit, work, count, in_flight)
                print(f"{work}\n" + parts.table(time.process_time() - before, count, count * steps))
                continue
            for _ in range(chosen.repetitions):
                before, postgres_before, began = time.process_time(), cpu_seconds(postgres_pid), time.perf_counter()
                if chosen.rate:
                    latencies = await load_at_rate(server.submit, work, count, chosen.rate)
                else:
                    latencies = await load(server.submit, work, count, in_flight)
                wall, own = time.perf_counter() - began, time.process_time() - before
                postgres = cpu_seconds(postgres_pid) - postgres_before
                each = 1e6 / (count * steps)
                print(
                    f"{work} {way}: {count * steps / wall:8,.0f} steps/s, p50 {latencies[count // 2]:6.2f}, p99 "
                    f"{latencies[count * 99 // 100]:6.2f} ms a run; server {own * each:6.1f} us a step, "
                    f"{own * each * steps:7.1f} us a run; Postgres {postgres * each:5.1f} us a step",
                    flush=True,
                )
            if chosen.profile:
                profile = cProfile.Profile()
                profile.enable()
                await load(server.submit, work, count, in_flight)
                profile.disable()
                pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    print(f"peak memory: {memory_mb(os.getpid()):.0f} MB")


def main() -> int:
    """Measures as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hotpath", description=__doc__)
    parser.add_argument("works", nargs="*", default=["W4"], help="W1, W2, W3 or W4 (default: W4)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the runs to make (default: 1)")
    parser.add_argument("--repetitions", type=int, default=3, help="how often to measure each (default: 3)")
    parser.add_argument("--in-flight", type=int, default=64, help="runs of W4 at once (default: 64)")
    parser.add_argument("--rate", type=float, default=0.0, help="runs that come a second, instead of so many in flight")
    parser.add_argument("--parts", action="store_true", help="tell where the time goes, part by part")
    parser.add_argument(
        "--profile", action="store_true", help="profile by function (cProfile, which costs much itself)"
    )
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="baton-hotpath-") as directory,
        EmbeddedPostgres(Path(directory)) as postgres,
    ):
        asyncio.run(migrate(postgres.dsn))
        assert postgres.process_id is not None
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measure(postgres.dsn, postgres.process_id, chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
