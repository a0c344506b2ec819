"""The benchmark runs whole with tiny sizes, and says so where it cannot measure."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import open_loop
from benchmarks.processes import NotMeasured, Program
from benchmarks.readme import with_table
from benchmarks.record import Record, figures
from benchmarks.tables import report
from benchmarks.works import CLIENTS, CLOSED, HOPELESS, OPEN, W4
from tests.acceptance.processes import ROOT

SYSTEMS = [
    "postgres",
    "grpc",
    "sketch-batch",
    "sketch-unary",
    "baton-unary",
    "baton-sdk",
    "baton-traced-100",
    "dbos",
    "restate",
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What one tiny benchmark wrote and printed, where nothing of the peers is installed."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "benchmarks", "--scale", "0.005", "--repetitions", "1", "--offline"]
    command += ["--output", str(folder / "bench.json"), "--environment", str(folder), "--systems", *SYSTEMS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "bench.json").read_text()), done.stdout


def _values(written: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    return {(record["system"], record["work"], record["metric"]): record["value"] for record in written["records"]}


def test_every_work_of_a_system_is_measured(measured: tuple[dict[str, Any], str]) -> None:
    values = _values(measured[0])

    for system in ("baton-unary", "sketch-unary"):
        for work in (*CLOSED, *CLIENTS, *OPEN):
            if work.rate > HOPELESS * values[system, "W4", "steps_per_second"] / W4.steps:
                continue
            assert 0 < values[system, work.name, "p50_ms"] <= values[system, work.name, "worst_ms"]
            assert values[system, work.name, "missed"] == 0
            assert values[system, work.name, "server_peak_memory_mb"] > 20
    for system in ("baton-sdk", "baton-traced-100", "sketch-batch"):
        assert values[system, "W4", "steps_per_second"] > 0


def test_a_step_alone_costs_two_durable_commits(measured: tuple[dict[str, Any], str]) -> None:
    values = _values(measured[0])

    assert values["postgres", "commit", "commits_per_step"] == 1
    for system in ("baton-unary", "sketch-unary"):
        # Submission and end; renewals of the lease and the like come on top.
        assert 2 <= values[system, "W1", "commits_per_step"] < 4
        assert values[system, "W1", "wal_bytes_per_step"] > 500


def test_the_start_is_measured(measured: tuple[dict[str, Any], str]) -> None:
    values = _values(measured[0])

    assert 0 < values["baton-unary", "W5", "ready_seconds"] < values["baton-unary", "W5", "first_run_seconds"]
    assert values["baton-unary", "W5", "idle_memory_mb"] > 20


def test_disk_and_wire_are_measured_by_themselves(measured: tuple[dict[str, Any], str]) -> None:
    values = _values(measured[0])

    for system, work in [
        ("postgres", "commit100"),
        *(("grpc", work) for work in ("echo", "echo64", "stream", "stream50")),
    ]:
        assert values[system, work, "steps_per_second"] > 0


def test_full_tracing_sends_spans(measured: tuple[dict[str, Any], str]) -> None:
    assert _values(measured[0])["baton-traced-100", "all", "spans"] > 0


def test_peers_that_are_not_there_are_told(measured: tuple[dict[str, Any], str]) -> None:
    written, printed = measured

    assert set(written["absent"]) == {"dbos", "restate"}
    assert "Not measured: dbos: not installed" in printed
    assert not [record for record in written["records"] if record["system"] in ("dbos", "restate")]


def test_what_is_printed_is_what_is_written(measured: tuple[dict[str, Any], str]) -> None:
    written, printed = measured

    records = [Record(**record) for record in written["records"]]
    assert report(written["machine"], records, written["absent"]) in printed
    assert f"{_values(written)['baton-unary', 'W1', 'p50_ms']:.2f}" in printed
    assert max(len(line) for line in printed.splitlines() if line.startswith("|")) <= 120


def test_medians_are_shown_with_the_worst() -> None:
    records = [
        Record("baton-unary", "W4", "p99_ms", value, repetition)
        for repetition, value in enumerate((30.0, 10.0, 20.0), 1)
    ]

    assert "20 (10-30)" in report({}, records, {})


async def test_an_open_loop_counts_from_when_a_run_was_due_and_tells_what_was_missed() -> None:
    released = asyncio.Event()
    calls = itertools.count()

    async def one() -> None:
        number = next(calls)
        if number == 0:
            await released.wait()
        elif number == 1:
            raise RuntimeError("refused")
        elif number == 9:
            released.set()

    answer = await open_loop(one, 10, 500.0)

    assert answer["missed"] == 1
    assert len(answer["latencies_ms"]) == 10
    # The first waited for the last to arrive; the one that was refused counts as if it had waited for long.
    assert max(answer["latencies_ms"]) >= 5000
    found = figures(answer, 3)
    assert found["runs"] == 9
    assert found["worst_ms"] == max(answer["latencies_ms"])


def test_a_program_that_ends_is_no_figure(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        Program(["-c", "import sys; sys.exit('no room')"], log) as program,
        pytest.raises(NotMeasured, match="no room"),
    ):
        program.ask(do="runs")


def test_the_readme_gets_the_table_of_what_was_measured(measured: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    written, _ = measured
    page, figures_file = tmp_path / "README.md", tmp_path / "bench.json"
    figures_file.write_text(json.dumps(written))
    page.write_text("before\n<!-- bench -->\nan old table\n<!-- /bench -->\nafter\n")
    command = [sys.executable, "-m", "benchmarks.readme", str(figures_file), "--page", str(page)]

    subprocess.run(command, cwd=ROOT, check=True)
    first = page.read_text()
    subprocess.run(command, cwd=ROOT, check=True)

    assert page.read_text() == first
    assert first.startswith("before\n<!-- bench -->\n")
    assert first.endswith("<!-- /bench -->\nafter\n")
    assert "an old table" not in first
    assert "Baton, a call for each step" in first
    assert written["machine"]["date"] in first
    assert "Not measured: restate" in first


def test_a_page_without_a_place_for_the_table_is_not_written() -> None:
    with pytest.raises(ValueError, match="no place"):
        with_table("nothing here", "table")
