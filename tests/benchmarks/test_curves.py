"""Each curve runs whole with tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.curves import SIZES
from tests.acceptance.processes import ROOT

POINTS = {
    "width": {"width": 2},
    "length": {"length": 2},
    "events": {"events": 2},
    "watchers": {"watchers": 3, "watchers, an event a message": 2, "watchers of as many runs": 2},
    "workers": {"workers": 2},
    "endpoints": {"endpoints": 2},
    "namespaces": {"namespaces": 2},
    "queues": {"queues": 2},
}
"""At how many sizes each curve is measured, and those that are measured beside it."""

Measure = Callable[[str], tuple[list[dict[str, Any]], str]]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    """Measures one curve; returns its records and what was printed."""

    def run(curve: str) -> tuple[list[dict[str, Any]], str]:
        output = tmp_path / "curves.json"
        command = [sys.executable, "-m", "benchmarks.curves", "--sizes", "tiny", "--only", curve, "--offline"]
        command += ["--output", str(output), "--directory", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stderr
        return json.loads(output.read_text())["records"], done.stdout

    return run


def values(records: list[dict[str, Any]]) -> dict[tuple[str, str, str], float]:
    return {(record["work"], record["metric"], record["note"]): record["value"] for record in records}


@pytest.mark.parametrize("curve", SIZES["tiny"])
def test_a_curve_has_a_point_at_each_size(measure: Measure, curve: str) -> None:
    records, printed = measure(curve)

    sizes: dict[str, set[str]] = {}
    for record in records:
        sizes.setdefault(record["work"], set()).add(record["note"])
    assert {name: len(found) for name, found in sizes.items()} == POINTS[curve]
    match curve:
        case "events":
            assert values(records)["events", "ms_per_step", "size=1000"] > 0
        case "watchers":
            # A chain of two steps has five events that were not there yet when its watcher came.
            assert values(records)["watchers", "events_delivered", "size=5"] == 25
        case "queues":
            assert "| queues | 1 | 10 |" in printed
