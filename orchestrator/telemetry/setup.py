"""Starts and stops tracing, by the standard OTEL_* variables. Without an endpoint or exporter nothing is imported."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.telemetry.observer import SpanObserver
from orchestrator.telemetry.sampling import Sampler, sampler_from
from orchestrator.telemetry.settings import tracing_settings
from orchestrator.telemetry.submit_span import SpanStarter, span_starter, wall_clock

if TYPE_CHECKING:
    from orchestrator.telemetry.queue import SpanQueue

CLOSE_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Tracing:
    """Tracing at work: `observer` is for the engine, `span_starter` for the gRPC door. Close it after both."""

    observer: SpanObserver
    span_starter: SpanStarter
    sampler: Sampler
    _queue: SpanQueue

    def new_trace(self) -> str:
        """Gives the traceparent of a new trace, of which the sampler decided whether it is recorded."""
        return self.sampler.sample("")

    async def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> bool:
        """Exports what is queued, waiting at most so long; tells whether all of it was handed over in that time."""
        return await asyncio.to_thread(self._queue.close, timeout_seconds)


def start_tracing(now: Callable[[], int] = wall_clock) -> Tracing | None:
    """Starts tracing as the process's environment says; None where nothing is to be exported.

    `now` gives the microseconds that calls are stamped with; journals should be stamped by the same clock.
    Errors: TelemetrySettingInvalid.
    """
    settings = tracing_settings(os.environ)
    if settings is None:
        return None
    sampler = sampler_from(os.environ)
    from orchestrator.telemetry.export import span_sinks
    from orchestrator.telemetry.queue import SpanQueue

    queue = SpanQueue(span_sinks(settings), settings.batch)
    return Tracing(SpanObserver(queue.put), span_starter(sampler, queue.put, now), sampler, queue)
