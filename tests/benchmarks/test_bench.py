"""The benchmark runs whole with tiny sizes, and says so where it cannot measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.processes import NotMeasured, Program
from benchmarks.report import Record, table
from tests.acceptance.processes import ROOT


def test_every_work_and_baseline_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", "--scale", "0.005", "--repetitions", "1", "--output", str(output)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)

    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text())
    assert written["machine"]["cores"] >= 1
    values = {(record["system"], record["work"], record["metric"]): record["value"] for record in written["records"]}
    for work in ("W1", "W2", "W3", "W4"):
        assert 0 < values["baton-unary", work, "p50_ms"] <= values["baton-unary", work, "p99_ms"]
        assert values["baton-unary", work, "cpu_seconds_per_1000_steps"] >= 0
    assert values["baton-unary", "W5", "ready_seconds"] < values["baton-unary", "W5", "first_run_seconds"]
    assert values["baton-unary", "W5", "idle_memory_mb"] > 20
    for system, baseline in (("postgres", "commit"), ("postgres", "commit100"), ("grpc", "echo"), ("grpc", "echo64")):
        assert values[system, baseline, "steps_per_second"] > 0
    # What is printed are the figures that are written.
    assert table(written["machine"], [Record(**record) for record in written["records"]]).splitlines()[2] in done.stdout
    assert f"{values['baton-unary', 'W1', 'p50_ms']:.2f}" in done.stdout


def test_a_program_that_ends_is_no_figure(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        Program(["-c", "import sys; sys.exit('no room')"], log) as program,
        pytest.raises(NotMeasured, match="no room"),
    ):
        program.ask(do="runs")
