"""A watcher as a program: `watcher.py NAME LOG SEED FOLDER ADDRESS...` watches runs that the clients
of a folder get.

It notes each event in its log as it sees it. Where a watch breaks it goes on at another replica, after the last cursor;
killed and started again with the same log, it does the same with what it had not seen to the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from baton.v1 import run_service_pb2

from tests.acceptance.wire import BASIC, ENDING, Baton
from tests.chaos.client import PASSING
from tests.chaos.logs import Log, Tail, now_us, read_log

WATCHES = 12
"""Runs that are watched at a time."""

LOOK_SECONDS = 0.1
"""How often the clients' logs are looked into for runs that nobody watches."""


@dataclass(slots=True)
class Watched:
    """A run, and how far it was seen."""

    run_id: str
    cursor: str = ""


class Watcher:
    """Watches at replicas that it chooses at random."""

    def __init__(self, log: Log, seed: int, addresses: list[str]) -> None:
        self._log = log
        self._random = random.Random(seed)
        self._batons = [Baton(address) for address in addresses]

    async def follow(self, watched: Watched) -> None:
        """Watches a run to its end."""
        while True:
            baton = self._random.choice(self._batons)
            request = run_service_pb2.WatchRunRequest(run_id=watched.run_id, cursor=watched.cursor, view=BASIC)
            call = baton.runs.WatchRun(request, timeout=60)
            try:
                async for update in call:
                    if self._note(watched, update):
                        return
            except grpc.aio.AioRpcError as error:
                if error.code() not in PASSING:
                    self._log.write(what="failed", run=watched.run_id, code=error.code().name, time=now_us())
                    return
            finally:
                call.cancel()
            await asyncio.sleep(self._random.uniform(0.05, 0.3))  # As a client does that is told to try again.

    def _note(self, watched: Watched, update: run_service_pb2.WatchRunResponse) -> bool:
        """Notes what a message tells; returns whether it is the last."""
        watched.cursor = update.cursor
        if update.HasField("snapshot"):
            seen = {"what": "snapshot", "sequence": update.snapshot.last_sequence}
            ended = update.snapshot.HasField("end_time")
        elif update.HasField("event"):
            seen = {"what": "event", "sequence": update.event.sequence}
            ended = update.event.WhichOneof("kind") in ENDING
        else:
            return False
        self._log.write(run=watched.run_id, cursor=update.cursor, ended=ended, time=now_us(), **seen)
        return ended


def unfinished(log: Path) -> list[Watched]:
    """What an earlier life of this watcher did not see to the end."""
    begun: dict[str, Watched] = {}
    for record in read_log(log):
        begun[record["run"]] = Watched(record["run"], record.get("cursor", ""))
        if record["what"] == "failed" or record["ended"]:
            del begun[record["run"]]
    return list(begun.values())


async def _main(name: str, log: str, seed: str, folder: str, *addresses: str) -> None:
    draw, clients = random.Random(f"{name}{seed}"), Tail(Path(folder), "client-*.log")
    watcher = Watcher(Log(Path(log)), int(seed), list(addresses))
    known = {record["run"] for record in read_log(Path(log))}
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    watches = {asyncio.create_task(watcher.follow(each)) for each in unfinished(Path(log))}
    print("watching", flush=True)
    while not stopping.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await stopping.wait()
        watches = {watch for watch in watches if not watch.done()}
        runs = sorted({each["run"] for each in clients.fresh() if each["what"] == "acknowledged"} - known)
        for run_id in draw.sample(runs, max(0, min(len(runs), WATCHES - len(watches)))):
            known.add(run_id)
            watches.add(asyncio.create_task(watcher.follow(Watched(run_id))))
    await asyncio.gather(*watches)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
