"""Which new traces are recorded, by OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG. Decided once, at submission.

The rules and the arithmetic are OpenTelemetry's, so that a trace is decided alike by every party that samples by ratio.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from orchestrator.domain.tracing import (
    TraceContext,
    format_traceparent,
    parse_traceparent,
)
from orchestrator.telemetry.settings import TelemetrySettingInvalid

_PARENT_BASED = "parentbased_"
_RULES = ("always_on", "always_off", "traceidratio")
DEFAULT_SAMPLER = "parentbased_always_on"


class Sampler:
    """Decides for traces by a ratio from 0 to 1; with `parent_based` a caller's own decision stands."""

    __slots__ = ("_bound", "_parent_based")

    def __init__(self, ratio: float, *, parent_based: bool) -> None:
        self._bound = round(ratio * (1 << 64))
        self._parent_based = parent_based

    def sample(self, traceparent_in: str) -> str:
        """Gives the traceparent of a new span: in the caller's trace where it sent one, else in a new trace."""
        parent = parse_traceparent(traceparent_in)
        trace_id = parent.trace_id if parent is not None else os.urandom(16)
        if parent is not None and self._parent_based:
            sampled = parent.sampled
        else:
            sampled = int.from_bytes(trace_id[8:], "big") < self._bound
        return format_traceparent(TraceContext(trace_id, os.urandom(8), sampled))


def sampler_from(environment: Mapping[str, str]) -> Sampler:
    """Reads the sampler. Errors: TelemetrySettingInvalid."""
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower() or DEFAULT_SAMPLER
    rule = name.removeprefix(_PARENT_BASED)
    if rule not in _RULES:
        known = ", ".join([*_RULES, *(_PARENT_BASED + each for each in _RULES)])
        raise TelemetrySettingInvalid("OTEL_TRACES_SAMPLER", f"is {name!r}; use one of {known}")
    ratio = 0.0 if rule == "always_off" else 1.0
    argument = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    if rule == "traceidratio" and argument:
        ratio = _ratio(argument)
    return Sampler(ratio, parent_based=name.startswith(_PARENT_BASED))


def _ratio(argument: str) -> float:
    try:
        ratio = float(argument)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise TelemetrySettingInvalid("OTEL_TRACES_SAMPLER_ARG", f"is {argument!r}; use a number from 0 to 1")
    return ratio
