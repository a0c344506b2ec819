"""Generates the example contracts in protos/, as an application would, before the tests that import them are read."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from baton import Client

from .double import Double

HERE = Path(__file__).parent


def generated(folder: Path) -> Path:
    """Generates the modules of a folder of protos; returns where they are."""
    target = Path(tempfile.mkdtemp(prefix="baton-sdk-stubs-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    protos = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.proto"))
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", *outputs, *protos],
        check=True,
        env={**os.environ, "PATH": path},
        stderr=subprocess.PIPE,
    )
    return target


STUBS = generated(HERE / "protos")
sys.path.insert(0, str(STUBS))


@pytest.fixture(scope="session")
def stubs() -> Path:
    """Folder of the generated modules and their type stubs."""
    return STUBS


@pytest.fixture
async def double() -> AsyncIterator[Double]:
    """A small Baton that serves."""
    server = Double()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(double: Double) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(double.address) as made:
        yield made
