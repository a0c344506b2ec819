"""Runs the conformance suite of the work stream on the SDK's worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.acceptance.contracts import Contract, compiled
from tests.conformance.work_stream import WorkStreamConformance

from .double import Double
from .pricing_worker import pricing_worker


@pytest.fixture(scope="session")
def pricing() -> Contract:
    return Contract("pricing.v1", compiled(Path(__file__).parents[1] / "node" / "protos", "pricing/v1/pricing.proto"))


class TestWorker(WorkStreamConformance):
    @pytest.fixture
    async def address(self, pricing: Contract) -> AsyncIterator[str]:
        baton = Double()
        await baton.start()
        worker = pricing_worker(baton.address)
        yield await worker.start()
        await worker.stop(0)
        await baton.stop()
