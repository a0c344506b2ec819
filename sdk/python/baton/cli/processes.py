"""`baton serve --processes N`: several servers on one address of this machine, and the supervisor that keeps them.

Each process is a replica as any other. All listen on the public address (SO_REUSEPORT: the kernel deals connections out
among them), and each on one of its own, at which the others reach it. The supervisor serves nothing and reads no
database; what a server does may not enter. `python -m baton.cli.processes` is one of the servers: its standard input
ends with the supervisor, its standard output tells that it serves, and then that its event loop turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from baton.cli.outcomes import LISTEN_CURE, Choices, CommandFailed, ExitCode, OutputForm

PROCESSES_LIMIT = 64
"""Most processes of one supervisor."""

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
"""A process that ended is started again after a pause, which doubles with each end, up to this."""

STEADY_SECONDS = 60.0
"""One that served for so long has its first pause again."""

STOP_SECONDS = 10.0
"""What a process gets beyond its own times to drain and to stop, before it is killed."""

READY = b"ready\n"

BEAT = b"."
BEAT_SECONDS = 0.25
"""How often the event loop of a server process tells that it turns."""

HEARING_SECONDS = 1.0
"""How long each is listened for; it is silent where nothing comes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the processes of one supervisor are: `address` is the public one, with its port. `first_replica_address`
    is BATON_REPLICA_ADDRESS: the process of number i, from 0, has its port plus i; empty for free ports."""

    address: str
    first_replica_address: str

    def environment(self, number: int) -> Mapping[str, str]:
        """The settings in which one process differs from the others."""
        host = self.address.rpartition(":")[0]
        if not self.first_replica_address:
            # An address to listen on everywhere is none to be reached at.
            own = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
            return {"BATON_LISTEN_ADDRESS": self.address, "BATON_REPLICA_LISTEN_ADDRESS": f"{own}:0"}
        told, _, port = self.first_replica_address.rpartition(":")
        return {
            "BATON_LISTEN_ADDRESS": self.address,
            "BATON_REPLICA_LISTEN_ADDRESS": f"{host}:{int(port) + number}",
            "BATON_REPLICA_ADDRESS": f"{told}:{int(port) + number}",
        }


def processes_fault(number: int, listen_address: str, replica_address: str) -> CommandFailed | None:
    """What is wrong with what was asked for, if anything."""
    if not 1 <= number <= PROCESSES_LIMIT:
        return CommandFailed(f"--processes: {number} is not from 1 to {PROCESSES_LIMIT}", code=ExitCode.USAGE)
    if not sys.platform.startswith("linux"):
        return CommandFailed("--processes: only Linux deals connections out among processes", "start one for each port")
    if listen_address.startswith("unix"):
        return CommandFailed("--processes: a Unix socket is listened on by one process", "listen on HOST:PORT")
    port = replica_address.rpartition(":")[2]
    if replica_address and not (port.isdigit() and 0 < int(port) <= 65_536 - number):
        return CommandFailed(
            f"BATON_REPLICA_ADDRESS={replica_address!r}: not HOST:PORT with {number} ports from there on",
            "name the first of as many free ports, or leave it out on one machine",
        )
    return None


def take_address(address: str) -> tuple[socket.socket, str]:
    """Takes a public address without listening on it: it stays taken while no process serves, and nobody else's server
    can share it unnoticed. Returns what holds it, and the address with its port. Errors: CommandFailed."""
    host, _, port = address.rpartition(":")
    held = None
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host.strip("[]") or "0.0.0.0", int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Bound before it may be shared: this fails where anybody listens, also one who would share.
        held.bind(place)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except (OSError, ValueError) as error:
        if held is not None:
            held.close()
        raise CommandFailed(
            f"cannot listen on {address}: it is in use or not an address of this machine; choose another", LISTEN_CURE
        ) from error
    return held, f"{host}:{held.getsockname()[1]}"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a process may take to stop, and how long its event loop may stand still, before it is killed, in
    seconds."""

    stop_seconds: float
    stall_seconds: float


class Supervisor:
    """Keeps so many processes at a place. `on_ready` is called once, when all of them serve for the first time."""

    def __init__(self, number: int, place: Place, patience: Patience, on_ready: Callable[[], None]) -> None:
        self._number, self._place = number, place
        self._patience, self._on_ready = patience, on_ready
        self._stopping = asyncio.Event()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._ready: set[int] = set()
        self._served = False
        self._failed = False
        self._error: OSError | None = None

    async def run(self) -> ExitCode:
        """Supervises until SIGINT or SIGTERM, then lets all processes drain; a second signal ends them at once.

        Returns FAILED where a process ended before all of them had served, or did not end in good order at the stop.
        Errors: what `on_ready` raises.
        """
        loop = asyncio.get_running_loop()
        for kind in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(kind, self._signalled)
        async with asyncio.TaskGroup() as group:
            for number in range(self._number):
                group.create_task(self._keep(number))
        if self._error is not None:
            raise self._error
        return ExitCode.FAILED if self._failed else ExitCode.SUCCESS

    def _signalled(self) -> None:
        if self._stopping.is_set():
            for process in self._processes.values():
                _send(process, signal.SIGKILL)
            os._exit(ExitCode.INTERRUPTED)
        self._stopping.set()

    async def _keep(self, number: int) -> None:
        """Starts one process, again and again until the stop."""
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run_once(number)
            if self._stopping.is_set():
                # Before it served it had nothing to put in order: the signal alone may have ended it.
                if code and not (code == -signal.SIGTERM and number not in self._ready):
                    self._fail()
                break
            self._ready.discard(number)
            if not self._served:
                # What is wrong with one is wrong with all; the process has told it.
                self._fail()
                break
            if time.monotonic() - began >= STEADY_SECONDS:
                pause_seconds = FIRST_PAUSE_SECONDS
            _log.warning(
                "a server process ended and is started again",
                extra={"process_number": number, "exit_code": code, "pause_seconds": pause_seconds},
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_seconds)
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)

    async def _run_once(self, number: int) -> int:
        """Runs one process to its end; returns what it ended with."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "baton.cli.processes",
            env={**os.environ, **self._place.environment(number), "BATON_PROCESS_NUMBER": str(number)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # A Ctrl-C reaches the supervisor alone, which hands it on: two signals would end a process at once.
            process_group=0,
        )
        self._processes[number] = process
        try:
            async with asyncio.TaskGroup() as group:
                told = group.create_task(self._listen(number, process))
                stop = group.create_task(self._end(number, process))
                code = await process.wait()
                told.cancel()
                stop.cancel()
        finally:
            del self._processes[number]
        return code

    async def _listen(self, number: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        if await process.stdout.readline() != READY:
            return
        self._begins_to_serve(number, process)
        if await self._falls_silent(process.stdout):
            # The kernel would go on dealing connections out to it, and nobody would answer them.
            _log.error(
                "the event loop of a server process stands still: it is killed", extra={"process_number": number}
            )
            _send(process, signal.SIGKILL)

    async def _falls_silent(self, beats: asyncio.StreamReader) -> bool:
        """Waits until nothing was heard of an event loop for too long; returns False where the process ends before."""
        # Counted, not measured: where the supervisor was frozen too, the others have had no time to tell anything.
        silent_seconds = 0.0
        while silent_seconds < self._patience.stall_seconds:
            try:
                async with asyncio.timeout(HEARING_SECONDS):
                    if not await beats.read(4_096):
                        return False
                silent_seconds = 0.0
            except TimeoutError:
                silent_seconds += HEARING_SECONDS
        return True

    def _begins_to_serve(self, number: int, process: asyncio.subprocess.Process) -> None:
        self._ready.add(number)
        _log.info("a server process serves", extra={"process_number": number, "pid": process.pid})
        if len(self._ready) == self._number and not self._served:
            self._served = True
            try:
                self._on_ready()
            except OSError as error:
                self._error = error
                self._stopping.set()

    async def _end(self, number: int, process: asyncio.subprocess.Process) -> None:
        await self._stopping.wait()
        _send(process, signal.SIGTERM)
        await asyncio.sleep(self._patience.stop_seconds)
        _log.error("a server process did not stop in time and is killed", extra={"process_number": number})
        _send(process, signal.SIGKILL)

    def _fail(self) -> None:
        self._failed = True
        self._stopping.set()


def _send(process: asyncio.subprocess.Process, kind: signal.Signals) -> None:
    """Sends a signal to a process that may have ended. By its id: the process object would first look whether it lives,
    and take the exit code of one that has just ended from asyncio, which then makes one up."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, kind)


def supervise(number: int, place: Place, patience: Patience, on_ready: Callable[[], None]) -> ExitCode:
    """Keeps so many server processes until a signal; returns the exit code."""

    async def run() -> ExitCode:
        return await Supervisor(number, place, patience, on_ready).run()

    return asyncio.run(run())


def main() -> None:
    """One server process of a supervisor."""
    from baton.cli import serving

    def work() -> None:
        settings = serving.server_settings(None)
        serving.configure_server_logs()
        serving.serve_until_signal(settings, serving.named_dsn(None), _tell_ready, sys.stdin.fileno())

    serving.leave(serving.ended(Choices(None, OutputForm.TABLE), work))


def _tell_ready(_port: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # without a supervisor it stops by itself
        sys.stdout.buffer.write(READY)
        sys.stdout.flush()
    output = sys.stdout.fileno()
    os.set_blocking(output, False)
    _beat(asyncio.get_running_loop(), output)


def _beat(loop: asyncio.AbstractEventLoop, output: int) -> None:
    """Tells the supervisor for ever that the loop turns; one that is frozen has heard enough."""
    with contextlib.suppress(BrokenPipeError, BlockingIOError):
        os.write(output, BEAT)
    loop.call_later(BEAT_SECONDS, _beat, loop, output)


if __name__ == "__main__":
    main()
