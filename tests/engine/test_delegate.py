"""What workers are told that ask a replica which has lost the run of their step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from baton.v1 import step_service_pb2

from orchestrator.domain.caller import StepClaim
from orchestrator.domain.errors import OwnerUnavailable, StepNotRunning
from orchestrator.engine.delegate import Steps


class Owned:
    """Implements Ownership: a run in memory, as it was in its second epoch."""

    async def find(self, key: object) -> Any:
        run = SimpleNamespace(indexes={"search": 0}, is_current=lambda step, attempt: False)
        return SimpleNamespace(epoch=2, run=run)


@pytest.mark.parametrize(("epoch", "error"), [(1, StepNotRunning), (2, StepNotRunning), (3, OwnerUnavailable)])
async def test_an_attempt_of_a_later_epoch_is_not_told_to_stop(epoch: int, error: type[Exception]) -> None:
    nothing: Any = None
    owned: Any = Owned()
    claim = StepClaim("default", UUID(int=1), "search", 3, epoch)
    steps = Steps(nothing, nothing, owned, nothing, lambda token: claim)
    with pytest.raises(error):
        await steps.heartbeat(step_service_pb2.HeartbeatRequest(step_token="token"))
