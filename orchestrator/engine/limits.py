"""Limits and times of the engine, with their defaults; config.py reads them from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_PAYLOAD_BYTES = 1 << 20
"""Largest input or output of a run or a step."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one replica takes on, and how long it waits.

    Times are seconds. `max_active_bytes` bounds what the runs in memory hold, by the encoded size of their events and
    payloads: new runs beyond are refused, and none is taken over. `max_queued_events` and `max_queued_bytes` bound what
    waits for the journal: submissions beyond are refused. `max_read_bytes` bounds what is read for callers at
    once, `max_watch_bytes` what is being sent to watchers of runs: more wait in turn.
    `retry_budget_ratio` and `retry_budget_per_second` bound how many calls that failed at one worker are tried again:
    see retry_budget.py.
    `max_schedules` is for each namespace.
    `namespace_weights` are those of namespaces that have another than 1; the other `namespace_` limits bound what one
    of them may have here, so that others find room.
    """

    max_active_runs: int = 20_000
    max_active_bytes: int = 256 << 20
    max_run_bytes: int = 128 << 20
    max_read_bytes: int = 64 << 20
    max_watch_bytes: int = 64 << 20
    max_calls_in_flight: int = 2_000
    max_queued_events: int = 200_000
    max_queued_bytes: int = 256 << 20
    default_max_in_flight: int = 100
    retry_budget_ratio: float = 0.1
    retry_budget_per_second: float = 10.0
    default_run_timeout_seconds: float = 3_600.0
    lease_seconds: float = 5.0
    stall_seconds: float = 30.0
    adoption_interval_seconds: float = 1.0
    adoption_batch: int = 200
    park_seconds: float = 5.0
    scrub_interval_seconds: float = 10.0
    schedule_interval_seconds: float = 1.0
    schedule_batch: int = 32
    max_schedules: int = 10_000
    drain_seconds: float = 10.0
    attached_stale_seconds: float = 60.0
    watch_progress_seconds: float = 15.0
    foreign_poll_seconds: float = 0.25
    flush_max_events: int = 1_000
    flush_max_bytes: int = 4 << 20
    flush_max_events_of_run: int = 256
    revision_cache: int = 1_000
    namespace_weights: Mapping[str, float] = field(default_factory=dict)
    namespace_max_active_runs: int = 18_000
    namespace_max_active_bytes: int = 224 << 20
    namespace_max_queued_steps: int = 100_000
