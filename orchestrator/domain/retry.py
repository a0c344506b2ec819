"""How long to wait before the next attempt."""

from __future__ import annotations

from orchestrator.domain.workflow import RetryPolicy


def backoff_us(policy: RetryPolicy, failed_attempts: int, jitter_draw: float) -> int:
    """Returns the wait in microseconds after `failed_attempts` attempts of one target have failed (1 or more).

    `jitter_draw` from 0 to 1 decides how much of the jitter is taken away; the core itself draws nothing.
    """
    if policy.initial_backoff_us == 0:
        return 0
    try:
        wait = policy.initial_backoff_us * policy.backoff_multiplier ** (failed_attempts - 1)
    except OverflowError:
        wait = float(policy.max_backoff_us)
    wait = min(wait, float(policy.max_backoff_us))
    return int(wait * (1.0 - policy.jitter * jitter_draw))
