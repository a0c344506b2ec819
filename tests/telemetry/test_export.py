"""Export over real sockets, settings from the environment, sampling, and nothing at all where nothing is asked for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from orchestrator.domain.failures import Code
from orchestrator.domain.tracing import attempt_span_id, attempt_traceparent, parse_traceparent
from orchestrator.telemetry.sampling import Sampler, sampler_from
from orchestrator.telemetry.settings import TelemetrySettingInvalid, tracing_settings
from orchestrator.telemetry.setup import Tracing, start_tracing
from orchestrator.telemetry.span import Span
from orchestrator.telemetry.submit_span import span_starter, untraced
from tests.telemetry.receiver import Received, grpc_receiver, http_receiver
from tests.telemetry.stories import RUN_ID, TRACEPARENT, UNSAMPLED, told_chain

SUBMIT = "baton.v1.RunService/SubmitRun"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    with grpc_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{received.port}")
        yield received


def started() -> Tracing:
    tracing = start_tracing()
    assert tracing is not None
    return tracing


async def test_a_submission_and_its_run_arrive_as_one_tree(collector: Received) -> None:
    tracing = started()
    traceparent, finish = tracing.span_starter(f"/{SUBMIT}", TRACEPARENT)
    told_chain(tracing.observer, traceparent)
    finish(Code.OK)
    finish(Code.OK)
    assert await tracing.close()
    submit, run, step, attempt = (
        collector.named(name) for name in (SUBMIT, "run orders", "step charge", "shop.v1.ChargeService/Do")
    )
    assert {span.trace_id.hex() for span in collector.spans} == {TRACEPARENT[3:35]}
    assert submit.parent_span_id.hex() == TRACEPARENT[36:52]
    assert run.parent_span_id == submit.span_id
    assert step.parent_span_id == run.span_id
    assert attempt.parent_span_id == step.span_id
    worker = parse_traceparent(attempt_traceparent(traceparent, RUN_ID, "charge", 1))
    assert worker is not None
    assert worker.span_id == attempt.span_id == attempt_span_id(RUN_ID, "charge", 1)
    assert [submit.kind, run.kind, step.kind, attempt.kind] == [2, 1, 1, 3]
    assert [link.span_id for link in step.links] == [collector.named("step reserve").span_id]
    assert attempt.end_time_unix_nano - attempt.start_time_unix_nano == 30_000_000
    assert len(collector.spans) == 9


async def test_the_service_is_named_baton_and_no_replica_is_told_apart(collector: Received) -> None:
    for _ in range(2):
        tracing = started()
        told_chain(tracing.observer)
        assert await tracing.close()
    first, second = collector.resource_spans
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert collector.services == {"baton"}
    assert "service.instance.id" not in {attribute.key for attribute in first.resource.attributes}


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_SERVICE_NAME", "orders-baton"), ("OTEL_RESOURCE_ATTRIBUTES", "team=shop,service.name=orders-baton")],
)
async def test_the_environment_names_the_service(
    collector: Received, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    tracing = started()
    told_chain(tracing.observer)
    assert await tracing.close()
    assert collector.services == {"orders-baton"}


async def test_http_is_spoken_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{received.port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        tracing = started()
        told_chain(tracing.observer)
        assert await tracing.close()
        assert received.named("step charge").parent_span_id == received.named("run orders").span_id


async def test_unsampled_traces_send_nothing(collector: Received) -> None:
    tracing = started()
    traceparent, finish = tracing.span_starter(SUBMIT, UNSAMPLED)
    told_chain(tracing.observer, traceparent)
    finish(Code.OK)
    assert await tracing.close()
    assert traceparent[:36] == UNSAMPLED[:36]
    assert traceparent.endswith("-00")
    assert collector.spans == []


async def test_closing_does_not_wait_long_for_a_collector_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    # Bound but not listening, so that nobody else can take the port and every connection is refused.
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        tracing = started()
        told_chain(tracing.observer)
        before = time.monotonic()
        assert not await tracing.close(timeout_seconds=0.2)
        assert time.monotonic() - before < 2


async def test_the_global_tracer_provider_is_left_alone(collector: Received) -> None:
    from opentelemetry import trace

    before = trace.get_tracer_provider()
    tracing = started()
    assert trace.get_tracer_provider() is before
    assert await tracing.close()


@pytest.mark.parametrize("code", [Code.OK, Code.INVALID_ARGUMENT, Code.INTERNAL])
def test_a_submit_span_failed_only_where_the_server_did(code: Code) -> None:
    emitted: list[Span] = []
    times = iter([1_000, 3_000])
    starter = span_starter(Sampler(1.0, parent_based=True), emitted.append, lambda: next(times))
    traceparent, finish = starter(SUBMIT, "")
    finish(code)
    (span,) = emitted
    context = parse_traceparent(traceparent)
    assert context is not None
    assert (span.trace_id, span.span_id, span.parent_span_id) == (context.trace_id, context.span_id, None)
    assert (span.start_time, span.end_time) == (1_000, 3_000)
    assert span.error_code == ("INTERNAL" if code is Code.INTERNAL else "")
    assert span.attributes["rpc.response.status_code"] == code.name


def test_without_tracing_the_callers_own_context_is_kept() -> None:
    assert untraced(SUBMIT, TRACEPARENT)[0] == TRACEPARENT
    made = parse_traceparent(untraced(SUBMIT, "garbage")[0])
    assert made is not None
    assert not made.sampled


def test_nothing_is_imported_where_nothing_is_exported() -> None:
    program = (
        "import sys\n"
        "from orchestrator.telemetry import logs, observer, sampling, setup, spans, submit_span\n"
        "assert setup.start_tracing() is None\n"
        "submit_span.untraced('a/B', '')\n"
        "loaded = [name for name in sys.modules if name.split('.')[0] in ('opentelemetry', 'grpc')]\n"
        "assert not loaded, loaded\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=30)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317", "OTEL_SDK_DISABLED": "TRUE"},
    ],
)
def test_tracing_is_off(environment: dict[str, str]) -> None:
    assert tracing_settings(environment) is None


@pytest.mark.parametrize(
    ("environment", "exporters", "protocol"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp",), "grpc"),
        ({"OTEL_TRACES_EXPORTER": "console"}, ("console",), "grpc"),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ("otlp", "console"), "grpc"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:4317"}, ("otlp",), "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"}, ("otlp",), "http/protobuf"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
            ("otlp",),
            "grpc",
        ),
    ],
)
def test_tracing_is_on(environment: dict[str, str], exporters: tuple[str, ...], protocol: str) -> None:
    settings = tracing_settings(environment)
    assert settings is not None
    assert (settings.exporters, settings.protocol, settings.service_name) == (exporters, protocol, "baton")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv(variable, value)
    with pytest.raises(TelemetrySettingInvalid, match=variable):
        start_tracing()


@pytest.mark.parametrize(
    ("sampler", "argument", "no_parent", "sampled_parent", "unsampled_parent"),
    [
        ("", "", True, True, False),
        ("always_on", "", True, True, True),
        ("always_off", "", False, False, False),
        ("parentbased_always_off", "", False, True, False),
        ("traceidratio", "0", False, False, False),
        ("traceidratio", "", True, True, True),
        ("parentbased_traceidratio", "0.0", False, True, False),
        ("parentbased_traceidratio", "1", True, True, False),
    ],
)
def test_samplers(sampler: str, argument: str, no_parent: bool, sampled_parent: bool, unsampled_parent: bool) -> None:
    rules = sampler_from({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument})
    for incoming, expected in (("", no_parent), (TRACEPARENT, sampled_parent), (UNSAMPLED, unsampled_parent)):
        context = parse_traceparent(rules.sample(incoming))
        assert context is not None
        assert context.sampled is expected
        if incoming:
            assert context.trace_id.hex() == incoming[3:35]
            assert context.span_id.hex() != incoming[36:52]


def test_a_ratio_decides_each_trace_as_opentelemetry_does() -> None:
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    ours, theirs = Sampler(0.3, parent_based=False), TraceIdRatioBased(0.3)
    decisions = []
    for _ in range(500):
        context = parse_traceparent(ours.sample(""))
        assert context is not None
        expected = theirs.should_sample(None, int.from_bytes(context.trace_id, "big"), "x").decision
        assert context.sampled == (expected is Decision.RECORD_AND_SAMPLE)
        decisions.append(context.sampled)
    assert 0 < sum(decisions) < 500
