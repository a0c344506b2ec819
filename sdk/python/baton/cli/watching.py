"""Following a run until it ends: a live table on a terminal, else a line for each event, or JSON lines."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from rich.console import Group
from rich.live import Live
from rich.text import Text

from baton.cli.event_view import event_line, why
from baton.cli.lines import print_json, print_json_line
from baton.cli.outcomes import Choices, ExitCode
from baton.cli.output import console, note, show, state_text
from baton.cli.run_view import facts, head, run_state, steps_table
from baton.cli.types import Types
from baton.client import Client
from baton.connection import Lost
from baton.ends import PATIENCE_SECONDS
from baton.errors import BatonError, CallTimeout, Unavailable
from baton.runs import RunHandle
from baton.v1 import run_pb2
from baton.watch import ENDED_STATES

if TYPE_CHECKING:
    from rich.console import RenderableType

_READ_AGAIN_SECONDS = 1.0
"""A table is read anew this often without an event: reasons to wait are no events."""

_LEAST_SECONDS, _MOST_SECONDS = 0.1, 5.0
_READING_SHARE = 0.25
"""Most of the time that is spent on reading and drawing a large run."""

_CODES = {
    run_pb2.RUN_STATE_SUCCEEDED: ExitCode.SUCCESS,
    run_pb2.RUN_STATE_FAILED: ExitCode.RUN_FAILED,
    run_pb2.RUN_STATE_CANCELLED: ExitCode.RUN_CANCELLED,
}


def exit_code(run: run_pb2.Run) -> ExitCode:
    """The exit code that tells how a run ended."""
    return _CODES.get(run.state, ExitCode.WAIT_OVER)


async def watch(client: Client, handle: RunHandle[Any], chosen: Choices, *, rounds: bool = False) -> ExitCode:
    """Shows what a run does until it has ended, then how it ended; returns the exit code. With `rounds` it goes on for
    ever, a line for each event."""
    if not handle.cursor:
        await handle.refresh()  # A watch has patience with a server that goes away, not with one that is not there.
    if chosen.as_json:
        async for update in handle.watch(rounds=rounds):
            print_json_line(MessageToDict(update, preserving_proto_field_name=True))
        return exit_code(await handle.refresh())
    if rounds:
        await _watch_lines(client, handle, rounds=True)
    elif sys.stdout.isatty():
        await _watch_live(client, handle)
    else:
        await _watch_lines(client, handle)
    run = await handle.refresh()
    await print_end(client, run, with_head=not sys.stdout.isatty())  # the live table has said it
    return exit_code(run)


def _loss(client: Client, say: Callable[[str], None] = note) -> Lost:
    """Tells a person that a watch was lost and is tried again; `say` writes to standard error."""

    def tell(error: BatonError) -> None:
        address = client.address
        what = f"{address} answers {error.reason}" if error.reason else f"the connection to {address} is lost"
        say(f"{what}: trying again for up to {PATIENCE_SECONDS / 60:g} min")

    return tell


async def watch_ends(client: Client, terms: str, chosen: Choices) -> ExitCode:
    """Shows runs as they end, for ever."""
    types = Types(client.address)
    told = chosen.as_json
    async for _ in client.list_runs(terms, page_size=1):  # Is anybody there? As in `watch`.
        break
    async for message in client.watch_runs(terms, lost=None if chosen.as_json else _loss(client)):
        if not told:
            note("runs are told here as they end; Ctrl-C to leave")
            told = True
        for run in message.runs:
            if chosen.as_json:
                print_json_line(await types.to_json(run))
                continue
            line = Text(f"{run.run_id}  {run.workflow or '(inline)'}  ").append_text(state_text(run_state(run)))
            show(line.append(f"  {why(run.failure)}" if run.HasField("failure") else ""))
    return ExitCode.SUCCESS


async def print_end(client: Client, run: run_pb2.Run, *, with_head: bool = True) -> None:
    """Writes how a run ended: its state, then its failure or its output."""
    if with_head:
        show(head(run))
    for name, value in facts(run):
        if name == "failure":
            show(Text(f"  {value}", "red"))
    output = await Types(client.address).payload_to_json(run.output)
    if output is not None:
        print_json(output)


async def _watch_lines(client: Client, handle: RunHandle[Any], *, rounds: bool = False) -> None:
    if handle.cursor:
        show(head(handle.run))
    async for update in handle.watch(rounds=rounds, lost=_loss(client)):
        if update.HasField("event"):
            show(event_line(update.event))
        elif update.snapshot.state not in ENDED_STATES:
            show(head(update.snapshot))


class _Table:
    """A live table, that makes room for what is said on standard error."""

    def __init__(self, picture: Group) -> None:
        self._live = self._begin(picture)

    def _begin(self, picture: RenderableType) -> Live:
        live = Live(picture, console=console(), auto_refresh=False)
        live.start(refresh=True)
        return live

    def draw(self, picture: Group) -> None:
        """Draws the table anew in its place."""
        self._live.update(picture, refresh=True)

    def say(self, text: str) -> None:
        """Says something where the table is, which goes on below."""
        self._live.transient = True
        self.end()
        note(text)
        self._live = self._begin(self._live.get_renderable())

    def end(self) -> None:
        """Leaves the table as it is."""
        self._live.stop()


async def _watch_live(client: Client, handle: RunHandle[Any]) -> None:
    changed = asyncio.Event()
    ended = False
    run = await client.get_run(handle.id, full=False, all_steps=False)
    table = _Table(_picture(run))

    async def follow() -> None:
        nonlocal ended
        try:
            async for _ in handle.watch(lost=_loss(client, table.say)):
                changed.set()
        finally:
            ended = True
            changed.set()

    following = asyncio.create_task(follow())
    try:
        while True:
            start = time.monotonic()
            last = ended
            changed.clear()
            with suppress(Unavailable, CallTimeout):  # How long to try is for the watch to say.
                run = await client.get_run(handle.id, full=False, all_steps=False)
            table.draw(_picture(run))
            if last:
                break
            pace = min(max(_LEAST_SECONDS, (time.monotonic() - start) / _READING_SHARE), _MOST_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _READ_AGAIN_SECONDS)
            await asyncio.sleep(max(0.0, pace - (time.monotonic() - start)))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        table.end()
    if not following.cancelled():
        following.result()


def _picture(run: run_pb2.Run) -> Group:
    table = steps_table(run.steps, console().width)
    left_out = run.step_count - len(run.steps)
    more = f"{left_out:,} more steps are not watched here; see: baton run get {run.run_id}" if left_out > 0 else ""
    return Group(head(run), Text(), table, Text(more, "dim"))
