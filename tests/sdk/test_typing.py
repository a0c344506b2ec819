"""mypy --strict and pyright refuse wrong workflows with no plugin, by the stubs that mypy-protobuf generates."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SDK = HERE.parents[1] / "sdk" / "python"
BIN = Path(sys.executable).parent
OK = HERE / "typing_ok.py"
BAD = HERE / "typing_bad.py"
WRONG = {
    number: line.split("# wrong: ")[1]
    for number, line in enumerate(BAD.read_text().splitlines(), 1)
    if "# wrong: " in line and number > 1
}


def test_mypy_reports_exactly_the_wrong_lines(stubs: Path, tmp_path: Path) -> None:
    config = tmp_path / "mypy.ini"
    config.write_text(f"[mypy]\nstrict = True\nmypy_path = {stubs}:{SDK}\nexplicit_package_bases = True\n")
    command = [
        str(part) for part in (BIN / "mypy", "--config-file", config, "--cache-dir", tmp_path / "cache", OK, BAD)
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    found = re.findall(r"^(\S+):(\d+): error: (.*)$", run.stdout, re.MULTILINE)
    assert [line for line in found if OK.name in line[0]] == [], run.stdout
    _assert_lines({int(number) for path, number, _ in found if BAD.name in path}, run.stdout + run.stderr)


def test_pyright_reports_exactly_the_wrong_lines(stubs: Path, tmp_path: Path) -> None:
    settings = {
        "include": [str(OK), str(BAD)],
        "extraPaths": [str(stubs), str(SDK)],
        "typeCheckingMode": "strict",
        "pythonVersion": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
    config = tmp_path / "pyrightconfig.json"
    config.write_text(json.dumps(settings))
    command = [str(BIN / "basedpyright"), "-p", str(config), "--pythonpath", sys.executable, "--outputjson"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    found = json.loads(run.stdout)["generalDiagnostics"]
    assert [each for each in found if each["file"].endswith(OK.name)] == []
    _assert_lines({each["range"]["start"]["line"] + 1 for each in found if each["file"].endswith(BAD.name)}, run.stdout)


def _assert_lines(reported: set[int], output: str) -> None:
    missed = {number: WRONG[number] for number in WRONG.keys() - reported}
    assert len(WRONG) >= 20
    assert not missed, f"not reported: {missed}\n{output}"
    assert not reported - WRONG.keys(), output
