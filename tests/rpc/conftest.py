"""A server over a real socket, and the engine behind it as a fake that records its calls."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from baton.v1 import run_service_pb2_grpc, worker_service_pb2_grpc, workflow_service_pb2_grpc

from orchestrator.rpc.server import RpcServer
from orchestrator.security.credentials import DevelopmentAuthenticator
from tests.ports import free_port
from tests.rpc.fakes import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def server(engine: FakeEngine) -> AsyncIterator[RpcServer]:
    server = make_server(engine)
    yield server
    await server.stop(0)
    await server.close()


@pytest.fixture
async def address(server: RpcServer) -> str:
    return f"127.0.0.1:{await server.start()}"


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
def runs(channel: grpc.aio.Channel) -> run_service_pb2_grpc.RunServiceAsyncStub:
    return run_service_pb2_grpc.RunServiceStub(channel)


@pytest.fixture
def workflows(channel: grpc.aio.Channel) -> workflow_service_pb2_grpc.WorkflowServiceAsyncStub:
    return workflow_service_pb2_grpc.WorkflowServiceStub(channel)


@pytest.fixture
def workers(channel: grpc.aio.Channel) -> worker_service_pb2_grpc.WorkerServiceAsyncStub:
    return worker_service_pb2_grpc.WorkerServiceStub(channel)


def make_server(engine: FakeEngine, **options: object) -> RpcServer:
    """Makes a server of `engine` on a free port that no other server had: nobody may call there still."""
    authenticate = DevelopmentAuthenticator().authenticate
    return RpcServer(engine, authenticate, f"127.0.0.1:{free_port()}", **options)  # type: ignore[arg-type]
