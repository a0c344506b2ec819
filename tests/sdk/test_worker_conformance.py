"""Runs the conformance suite of the work stream on the SDK's worker, and on one in Node."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.acceptance.contracts import Contract, compiled
from tests.conformance.work_stream import WorkStreamConformance

from .double import Double
from .pricing_worker import pricing_worker

NODE = Path(__file__).parents[1] / "node"


@pytest.fixture(scope="session")
def pricing() -> Contract:
    return Contract("pricing.v1", compiled(NODE / "protos", "pricing/v1/pricing.proto"))


@pytest.fixture(scope="session")
def node_packages() -> None:
    """The packages of the Node worker, from its lock file."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node is not here")
    if not (NODE / "node_modules" / "@grpc").is_dir():
        made = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=NODE, capture_output=True, check=False)
        if made.returncode:
            pytest.skip("npm cannot get the packages of the Node worker")


class TestWorker(WorkStreamConformance):
    @pytest.fixture
    async def address(self, pricing: Contract) -> AsyncIterator[str]:
        baton = Double()
        await baton.start()
        worker = pricing_worker(baton.address)
        yield await worker.start()
        await worker.stop(0)
        await baton.stop()


@pytest.fixture(scope="session")
async def node_address(node_packages: None) -> AsyncIterator[str]:
    """A Node worker that serves the work stream."""
    process = await asyncio.create_subprocess_exec(
        "node", str(NODE / "worker.mjs"), "--work-stream", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        address = (await process.stdout.readline()).decode().split()[-1]
    yield address
    process.kill()
    await process.wait()


class TestNodeWorker(WorkStreamConformance):
    @pytest.fixture
    def address(self, node_address: str) -> str:
        return node_address
