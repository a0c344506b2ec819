"""Generates the example contracts in protos/, as an application would, before the tests that import them are read."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _generate() -> Path:
    target = Path(tempfile.mkdtemp(prefix="baton-sdk-stubs-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    protos = sorted(str(path.relative_to(HERE / "protos")) for path in (HERE / "protos").rglob("*.proto"))
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE / 'protos'}", *outputs, *protos],
        check=True,
        env={**os.environ, "PATH": path},
        stderr=subprocess.PIPE,
    )
    return target


STUBS = _generate()
sys.path.insert(0, str(STUBS))


@pytest.fixture(scope="session")
def stubs() -> Path:
    """Folder of the generated modules and their type stubs."""
    return STUBS
