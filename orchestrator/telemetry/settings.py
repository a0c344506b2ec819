"""What the OTEL_* variables say about whether and how traces are exported. Endpoints, headers, certificates and
timeouts are read by OpenTelemetry's exporters themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import urlsplit

ExporterName = Literal["otlp", "console"]
Protocol = Literal["grpc", "http/protobuf"]

_HTTP_PORT = 4318


class TelemetrySettingInvalid(ValueError):
    """A variable has a value that cannot be used; the message names it and the values that can."""

    def __init__(self, variable: str, problem: str) -> None:
        super().__init__(f"{variable} {problem}")
        self.variable = variable


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How spans are gathered: exported once `batch_limit` wait, or after `delay_seconds`; `queue_limit` may wait."""

    queue_limit: int = 16_384
    batch_limit: int = 512
    delay_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """How to export traces. `service_name` is None where the environment names the service itself."""

    exporters: tuple[ExporterName, ...]
    protocol: Protocol
    service_name: str | None
    batch: BatchSettings


def tracing_settings(environment: Mapping[str, str]) -> TracingSettings | None:
    """Reads the settings; None where nothing is to be exported. Errors: TelemetrySettingInvalid."""
    if _value(environment, "OTEL_SDK_DISABLED").lower() == "true":
        return None
    endpoint = _value(environment, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    names = [name.strip() for name in _value(environment, "OTEL_TRACES_EXPORTER").lower().split(",") if name.strip()]
    if not names:
        names = ["otlp"] if endpoint else ["none"]
    for name in names:
        if name not in ("otlp", "console", "none"):
            raise TelemetrySettingInvalid("OTEL_TRACES_EXPORTER", f"is {name!r}; use otlp, console or none")
    if "none" in names:
        return None
    named = _value(environment, "OTEL_SERVICE_NAME") or "service.name=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    exporters = cast("tuple[ExporterName, ...]", tuple(dict.fromkeys(names)))
    return TracingSettings(exporters, _protocol(environment, endpoint), None if named else "baton", _batch(environment))


def _batch(environment: Mapping[str, str]) -> BatchSettings:
    default = BatchSettings()
    queue_limit = _number(environment, "OTEL_BSP_MAX_QUEUE_SIZE", default.queue_limit)
    batch_limit = _number(environment, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(default.batch_limit, queue_limit))
    if batch_limit > queue_limit:
        raise TelemetrySettingInvalid("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", f"is above the queue's {queue_limit}")
    delay_ms = _number(environment, "OTEL_BSP_SCHEDULE_DELAY", int(default.delay_seconds * 1_000))
    return BatchSettings(queue_limit, batch_limit, delay_ms / 1_000)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = _value(environment, name)
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise TelemetrySettingInvalid(name, f"is {text!r}; use a whole number above 0")
    return int(text)


def _protocol(environment: Mapping[str, str], endpoint: str) -> Protocol:
    name = _value(environment, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL").lower()
    if name == "grpc" or name == "http/protobuf":
        return cast("Protocol", name)
    if name:
        raise TelemetrySettingInvalid("OTEL_EXPORTER_OTLP_PROTOCOL", f"is {name!r}; use grpc or http/protobuf")
    # Nobody serves gRPC on the port that is reserved for HTTP; to try would only lose the spans.
    return "http/protobuf" if _port(endpoint) == _HTTP_PORT else "grpc"


def _port(endpoint: str) -> int | None:
    try:
        return urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").port
    except ValueError:
        return None


def _value(environment: Mapping[str, str], *names: str) -> str:
    """The first of the variables that is set to something."""
    return next((value for name in names if (value := environment.get(name, "").strip())), "")
