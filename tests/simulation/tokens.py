"""Step tokens of the simulation, which anybody can read."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from orchestrator.domain.caller import StepClaim
from orchestrator.domain.errors import StepTokenInvalid

if TYPE_CHECKING:
    from orchestrator.engine.live import Flight, LiveRun


def step_token(live: LiveRun, flight: Flight) -> str:
    """Makes the token of a call; see dispatch.StepToken."""
    step = live.run.steps[flight.step].spec.id
    return "|".join((live.key.namespace, live.run_id, step, str(flight.attempt), str(live.epoch)))


def read_token(token: str) -> StepClaim:
    """Reads what `step_token` made."""
    parts = token.split("|")
    if len(parts) != 5:
        raise StepTokenInvalid("no token of ours")
    namespace, run_id, step, attempt, epoch = parts
    return StepClaim(namespace, UUID(run_id), step, int(attempt), int(epoch))
