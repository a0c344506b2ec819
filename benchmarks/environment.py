"""What only the benchmark needs: peers and the library that draws, installed apart from the product, from lock files.

Nothing here may become a dependency of Baton. What cannot be installed is told, and the benchmark goes on without it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.processes import ROOT

_PEERS = ROOT / "benchmarks" / "peers"
_LOCKS = {"python": _PEERS / "requirements.lock", "npm": _PEERS / "package-lock.json"}
INSTALL_SECONDS = 600.0
_REASON_CHARACTERS = 300


class Absent(Exception):
    """A system or a picture cannot be had on this machine; the message says why. All else goes on."""


class Environment:
    """The directory of what is installed, with what could not be and why."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._missing: dict[str, str] = {}

    def install(self, kinds: Sequence[str] = tuple(_LOCKS)) -> None:
        """Installs what the lock files name, where it is not there yet. What fails is told by the other methods."""
        for kind, steps in (("python", self._python_steps), ("npm", self._npm_steps)):
            if kind not in kinds or self._is_installed(kind):
                continue
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                for command in steps():
                    _run(command)
            except Absent as absent:
                self._missing[kind] = str(absent)
            else:
                self._mark(kind).write_text(_digest(kind))

    def python(self) -> str:
        """Returns the Python that has the packages of requirements.lock. Errors: Absent."""
        self._require("python")
        return str(self._directory / "venv" / "bin" / "python")

    def npm_program(self, name: str) -> str:
        """Returns the executable of that name that came with an npm package. Errors: Absent."""
        self._require("npm")
        found = sorted((self._directory / "npm" / "node_modules").glob(f"@*/*/bin/{name}"))
        if not found:
            raise Absent(f"its npm package has no {name} for this kind of machine")
        return str(found[0])

    def draw(self, *arguments: str) -> str:
        """Draws what those arguments of `benchmarks.plots` say; returns the files, or why there are none."""
        try:
            python = self.python()
        except Absent as absent:
            return f"no pictures: {absent}"
        command = [python, "-m", "benchmarks.plots", *arguments]
        drawn = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        return drawn.stdout if drawn.returncode == 0 else f"no pictures: {drawn.stderr.strip().splitlines()[-1]}"

    def versions(self) -> dict[str, str]:
        """Returns the versions of the peers that are installed."""
        found = {}
        if self._is_installed("python"):
            locked = dict(re.findall(r"^([a-z-]+)==(\S+)", _LOCKS["python"].read_text(), re.MULTILINE))
            found["dbos"] = locked["dbos"]
        if self._is_installed("npm"):
            packages = json.loads(_LOCKS["npm"].read_text())["packages"]
            found["restate"] = packages["node_modules/@restatedev/restate-server"]["version"]
        return found

    def _require(self, kind: str) -> None:
        if not self._is_installed(kind):
            raise Absent(self._missing.get(kind) or "not installed: `make bench` installs it")

    def _is_installed(self, kind: str) -> bool:
        mark = self._mark(kind)
        return mark.is_file() and mark.read_text() == _digest(kind)

    def _mark(self, kind: str) -> Path:
        return self._directory / f"{kind}.installed"

    def _python_steps(self) -> list[list[str]]:
        venv = self._directory / "venv"
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        return [
            [sys.executable, "-m", "venv", "--clear", str(venv)],
            [*pip, "--require-hashes", "--only-binary", ":all:", "--requirement", str(_LOCKS["python"])],
        ]

    def _npm_steps(self) -> list[list[str]]:
        folder = self._directory / "npm"
        folder.mkdir(exist_ok=True)
        for file in (_LOCKS["npm"], _LOCKS["npm"].with_name("package.json")):
            shutil.copyfile(file, folder / file.name)
        # Without scripts: the package's executable comes whole, and what its scripts would send stays here.
        return [["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]]


def _digest(kind: str) -> str:
    return hashlib.sha256(_LOCKS[kind].read_bytes()).hexdigest()


def _run(command: list[str]) -> None:
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Absent(f"{name} could not be run: {type(error).__name__}") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it said nothing"]
        raise Absent(f"{name} failed: {said[-1]}"[:_REASON_CHARACTERS])
