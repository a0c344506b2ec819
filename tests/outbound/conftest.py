"""Channels and workers for these tests: servers in this process that do as told, and processes that can be killed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from orchestrator.domain.ids import EndpointKey
from orchestrator.engine.worker_ports import Call
from orchestrator.outbound.calls import Outbound
from orchestrator.outbound.channels import Channels

PATH = "/test.Worker/Do"

Behaviour = Callable[[bytes, Any], Awaitable[bytes]]


class _OneMethod(grpc.GenericRpcHandler):
    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == PATH:
            return grpc.unary_unary_rpc_method_handler(self._behaviour)
        return None


@dataclass
class WorkerProcess:
    """A worker in a process of its own (see worker_process.py)."""

    process: asyncio.subprocess.Process
    address: str

    async def line(self) -> str:
        """The next line that it prints: each call that arrives, and each that is cancelled."""
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 10)).decode().strip()

    async def kill(self) -> None:
        """Ends it with SIGKILL."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


def call_of(
    address: str,
    payload: bytes = b"",
    deadline_seconds: float = 5.0,
    method: str = PATH.lstrip("/"),
    **told: Any,
) -> Call:
    """A call of the test method; `told` are fields of what the worker is told beside the request."""
    values = {
        "run_id": "run",
        "step": "step",
        "attempt": 1,
        "delivery": 1,
        "epoch": 1,
        "idempotency_key": "run/step/1",
        "step_token": "token",
        "traceparent": f"00-{1:032x}-{1:016x}-00",
    } | told
    return Call(EndpointKey("default", "worker", address), method, payload, deadline_seconds, **values)


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    """Channels that are closed at the end."""
    made = Channels()
    yield made
    await made.close()


@pytest.fixture
def outbound(channels: Channels) -> Outbound:
    """Calls with a short time to connect."""
    return Outbound(channels, connect_timeout_seconds=1.0)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Behaviour], Awaitable[str]]]:
    """Starts a server in this process whose one method does as told; gives its address."""
    servers: list[grpc.aio.Server] = []

    async def start(behaviour: Behaviour) -> str:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_OneMethod(behaviour),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.stop(None)


@pytest.fixture
async def spawn() -> AsyncIterator[Callable[..., Awaitable[WorkerProcess]]]:
    """Starts a worker in a process of its own, at the port given or any."""
    workers: list[WorkerProcess] = []

    async def start(port: int = 0) -> WorkerProcess:
        script = str(Path(__file__).with_name("worker_process.py"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, str(port), stdout=asyncio.subprocess.PIPE
        )
        worker = WorkerProcess(process, "")
        workers.append(worker)
        worker.address = f"127.0.0.1:{await worker.line()}"
        return worker

    yield start
    for worker in workers:
        await worker.kill()
