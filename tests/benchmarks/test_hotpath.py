"""The benchmark of the hot path measures, and names every part."""

from __future__ import annotations

import subprocess
import sys

from tests.acceptance.processes import ROOT


def test_the_parts_of_a_step_are_found_and_timed() -> None:
    command = [sys.executable, "-m", "benchmarks.hotpath", "W4", "W2", "--scale", "0.01", "--parts"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)

    assert done.returncode == 0, done.stderr
    assert "not found" not in done.stdout
    decided = next(line.split() for line in done.stdout.splitlines() if line.startswith("decide "))
    # A submission, an admission and a success for each of the three steps of W4.
    assert decided[1] == "7.0"
    assert float(decided[2]) > 0
