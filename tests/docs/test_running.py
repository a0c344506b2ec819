"""What the pages tell a reader to do is done: the quickstart, the Python examples, the SQL and the Node worker."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tests.docs.pages import DOCS, ROOT, blocks

WORKER_ADDRESS = "127.0.0.1:50051"
NODE_MODULES = ROOT / "tests" / "node" / "node_modules"


@dataclass(frozen=True, slots=True)
class Dev:
    """A `baton dev` that runs, and a folder for the reader's files."""

    address: str
    dsn: str
    folder: Path

    def run(self, script: str, expect: int = 0) -> str:
        """Runs lines of bash in the folder as the reader would, and returns what they print."""
        environment = {
            **os.environ,
            "BATON_ADDRESS": self.address,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        ended = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=90
        )
        assert ended.returncode == expect, ended.stdout + ended.stderr
        return ended.stdout

    def take_files(self, page: str) -> None:
        """Writes the files that a page shows into the folder."""
        for block in blocks(DOCS / page):
            if block.file:
                (self.folder / block.file).write_text(block.text)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "baton.cli", "-o", "json", "dev", "--listen", "127.0.0.1:0"]
    with (
        (folder / "dev.log").open("w") as log,
        subprocess.Popen(
            [*command, "--directory", str(folder / "dev")], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "dev.log").read_text()
        told = json.loads(line)
        try:
            yield Dev(told["address"], told["dsn"], folder)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(40)
            data = folder / "dev" / "data"
            if data.is_symlink():  # Where the tests run as root, the data lies elsewhere.
                shutil.rmtree(data.resolve().parent, ignore_errors=True)


def shell_lines(page: str, before: str = "") -> list[str]:
    """Returns the lines of the shell blocks of a page, up to a heading."""
    text = (DOCS / page).read_text()
    last = text[: text.index(before)].count("\n") if before else text.count("\n")
    return [
        line
        for block in blocks(DOCS / page)
        if block.language == "sh" and block.line < last
        for line in block.text.splitlines()
    ]


def test_the_quickstart_works(dev: Dev) -> None:
    dev.take_files("quickstart.md")
    address = free_address()
    script = ["trap 'kill $(jobs -p)' EXIT"]
    for line in shell_lines("quickstart.md", "## Next"):
        if line in ("make setup", ". .venv/bin/activate", "baton dev"):
            continue
        own = line.replace(WORKER_ADDRESS, address)
        own = own.replace("&", "> greeter.log 2>&1 &") if own.endswith(" &") else own
        # What must fail is told by the text: the run without a greeting ends with 3.
        script += [own, f"[ $? = {3 if 'tlh' in own else 0} ] || {{ echo failed: {own!r}; exit 1; }}"]
    said = dev.run("\n".join(script))
    dev.run("baton worker rm greeter")
    assert '{"text": "Buongiorno, Ada!", "letters": "13"}' in said
    assert "is draining" in said
    assert said.count("SUCCEEDED") >= 3


def test_the_python_page_works(dev: Dev) -> None:
    dev.take_files("quickstart.md")
    dev.take_files("python.md")
    generate, check, serve = shell_lines("python.md")
    assert serve == "python worker.py 127.0.0.1:0"
    said = dev.run(
        f"""set -e
        {generate} 2> /dev/null
        {serve} > worker.log 2>&1 & trap 'kill -KILL %1' EXIT
        until grep -q 'is registered' worker.log; do kill -0 %1; done
        {check}
        python client.py"""
    )
    dev.run("baton worker rm greeter")
    assert "Hello, Ada! 16" in said
    assert "event run_succeeded" in said
    assert "greet INVALID_ARGUMENT UNKNOWN_LANGUAGE" in said
    sdk, cache = ROOT / "sdk" / "python", ROOT / ".mypy_cache" / "docs"
    dev.run(f"MYPYPATH={sdk} mypy --strict --cache-dir {cache} greeting.py client.py worker.py")


class Killed:
    """A program of the reader's, which can be killed and started again."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str], command: list[str], ready: str) -> None:
        self._folder, self._environment, self._command, self._ready = folder, environment, command, ready
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it says that it is ready, once more than before."""
        before = self._log.read_text().count(self._ready) if self._log.exists() else 0
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.until(lambda: self._log.read_text().count(self._ready) > before)

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def until(self, fact: Callable[[], bool]) -> None:
        """Waits until something holds while the program runs."""
        assert self._process is not None
        end = time.monotonic() + 60
        while not fact():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.05)


def test_the_delegation_page_works(database: str, tmp_path: Path) -> None:
    """The agent goes on after kill -9 of its worker and of the server, and what has ended is not searched for again."""
    address = free_address()
    reader = Dev(address, database, tmp_path)
    reader.take_files("delegation.md")
    generate, _, _, apply, submit = shell_lines("delegation.md")
    reader.run(generate + " 2> /dev/null")
    environment = {**os.environ, "BATON_ADDRESS": address, "BATON_DATABASE_URL": database, "BATON_LEASE_SECONDS": "2"}
    serve = [sys.executable, "-m", "baton.cli", "serve", "--listen", address, "--output", "json"]
    server = Killed("server", tmp_path, environment, serve, '"address"')
    tools, agent = (
        Killed(name, tmp_path, environment, [sys.executable, f"{name}.py"], "is registered")
        for name in ("tools", "agent")
    )
    try:
        for program in (server, tools, agent):
            program.start()
        reader.run(apply)
        run_id = reader.run(submit).split()[0]
        searches = tmp_path / "searches.log"

        def asked(count: int) -> Callable[[], bool]:
            return lambda: searches.exists() and len(searches.read_text().splitlines()) >= count

        tools.until(asked(2))
        agent.kill()
        agent.start()
        tools.until(asked(4))
        server.kill()
        server.start()
        said = reader.run(f"baton run wait {run_id} --timeout 60s")
        queries = searches.read_text().splitlines()
    finally:
        for program in (agent, tools, server):
            program.kill()
    assert said.count("all about tea") == 6
    assert sorted(set(queries)) == ["tea", *(f"tea, part {number}" for number in range(2, 7))]
    assert len(queries) <= 7, "only the one that was under way when the server died may be there twice"
    sdk, cache = ROOT / "sdk" / "python", ROOT / ".mypy_cache" / "docs"
    reader.run(f"MYPYPATH={sdk} mypy --strict --cache-dir {cache} agent.py tools.py")


@pytest.mark.parametrize(
    "block",
    [
        block
        for page in ("observability.md", "deployment.md")
        for block in blocks(DOCS / page)
        if block.language == "sql"
    ],
    ids=lambda block: f"{block.page}:{block.line}",
)
async def test_queries_run(dev: Dev, block: object) -> None:
    connection = await asyncpg.connect(dev.dsn)
    try:
        await connection.execute("SET ROLE baton_engine")
        await connection.fetch(block.text)  # type: ignore[attr-defined]
    finally:
        await connection.close()


@pytest.mark.skipif(shutil.which("node") is None or not NODE_MODULES.is_dir(), reason="no Node, or not installed")
def test_the_node_worker_is_registered(dev: Dev) -> None:
    dev.take_files("quickstart.md")
    script = next(block.text for block in blocks(DOCS / "workers.md") if block.language == "js")
    address = free_address()
    (dev.folder / "worker.mjs").write_text(script.replace(WORKER_ADDRESS, address))
    (dev.folder / "node_modules").symlink_to(NODE_MODULES)
    said = dev.run(
        f"""set -e
        node worker.mjs > node.log 2>&1 & trap 'kill %1' EXIT
        until grep -q serving node.log; do kill -0 %1; done
        baton worker add greeter-in-node {address}
        baton run submit --inline greet.yaml -i name=Grace --wait"""
    )
    assert re.search(r"greeter\.v1\.GreeterService/Greet", said)
    assert "Hello, Grace!" in said
    dev.run("baton worker rm greeter-in-node")
