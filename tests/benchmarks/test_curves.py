"""The curves run whole with tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.acceptance.processes import ROOT


def test_every_curve_has_a_point_at_each_size(tmp_path: Path) -> None:
    output = tmp_path / "curves.json"
    command = [sys.executable, "-m", "benchmarks.curves", "--sizes", "tiny", "--offline", "--output", str(output)]

    done = subprocess.run(
        [*command, "--directory", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=150
    )

    assert done.returncode == 0, done.stderr
    records = json.loads(output.read_text())["records"]
    sizes: dict[str, set[str]] = {}
    for record in records:
        sizes.setdefault(record["work"], set()).add(record["note"])
    assert {curve: len(found) for curve, found in sizes.items()} == {
        "width": 2,
        "length": 2,
        "events": 2,
        "watchers": 3,
        "watchers, an event a message": 2,
        "watchers of as many runs": 2,
        "workers": 2,
        "endpoints": 2,
        "namespaces": 2,
        "queues": 2,
    }
    values = {(record["work"], record["metric"], record["note"]): record["value"] for record in records}
    assert values["events", "ms_per_step", "size=1000"] > 0
    # A chain of two steps has five events that were not there yet when its watcher came.
    assert values["watchers", "events_delivered", "size=5"] == 25
    assert "| queues | 1 | 10 |" in done.stdout
