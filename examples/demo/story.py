"""What happens in the demo, in order, and what must be true at its end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
from baton import BatonError, Client, RunNotSucceeded, WaitTimeout
from baton.v1 import event_pb2, run_pb2

from examples.demo import agents, documents, orders
from examples.demo.processes import Processes, StartFailed
from examples.demo.screen import Screen
from orchestrator.postgres.migrate import migrate

CARRIER_DIES_AT = 60
SERVER_DIES_AT = 150
"""Orders that have ended when the carrier, and then the server, is killed."""

DOCUMENTS_SHOWN = 12

WIDE = 115
"""Columns from which on tables are shown in full."""

WORKERS = {
    "inventory": ("examples.orders.inventory", "--latency", "0.01"),
    "payments": ("examples.orders.payments", "--latency", "0.02", "--unavailable-share", "0.15", "--seed", "7"),
    "express-carrier": ("examples.orders.shipping", "--latency", "0.02", "--carrier", "express"),
    "standard-carrier": ("examples.orders.shipping", "--latency", "0.02", "--carrier", "standard"),
    "notifications": ("examples.orders.notifications",),
    "readers": ("examples.documents.worker",),
    "publisher": ("examples.agents.publisher",),
}
AGENTS = {"planner": "examples.agents.planner", "tools": "examples.agents.tools"}
"""Workers that use the SDK: they register themselves."""

WORKFLOWS = ("examples/orders/orders.yaml", "examples/documents/documents.yaml", "examples/agents/report.yaml")

_EVENTS = """
    SELECT sequence, to_char(event_time, 'HH24:MI:SS.MS') AS time, kind, step, attempt
    FROM events WHERE run_id = $1::uuid ORDER BY sequence LIMIT 6
"""
_RUNS = "SELECT state, count(*) AS runs, sum(next_sequence - 1) AS events FROM runs GROUP BY state ORDER BY state"


class Story:
    """The demo, on a running Postgres."""

    def __init__(self, root: Path, folder: Path, dsn: str) -> None:
        self._root = root
        self._folder = folder
        self._dsn = dsn
        self._processes = Processes(root, folder / "logs")
        self._screen = Screen()
        self._server = ""
        self._addresses: dict[str, str] = {}
        self._wrong: list[str] = []
        self._note = ""

    async def tell(self) -> int:
        """Runs it all, stops what was started, and returns the exit code."""
        start = time.monotonic()
        try:
            await self._start()
            async with Client(self._server, retry_timeout=60) as client:
                await self._register(client)
                await self._orders(client)
                await self._documents(client)
                await self._agents()
                await self._look(client)
        except* (StartFailed, BatonError, RunNotSucceeded, WaitTimeout) as failed:
            self._wrong += [f"{type(each).__name__}: {each}" for each in _leaves(failed)]
        finally:
            codes = await self._processes.stop_all(first="server")
        if not self._wrong:
            self._wrong += [f"{name} ended with {code}" for name, code in codes.items() if code]
        return self._verdict(time.monotonic() - start)

    async def _start(self) -> None:
        count = len(WORKERS) + len(AGENTS)
        self._screen.title(f"Postgres, the server and {count} workers, each a process of its own")
        await migrate(self._dsn)
        starts = [self._processes.start(name, *self._command_of(name), "--port", "0") for name in WORKERS]
        self._server, *addresses = await asyncio.gather(self._start_server("127.0.0.1:0"), *starts)
        self._addresses = dict(zip(WORKERS, addresses, strict=True))
        await asyncio.gather(*map(self._start_agent, AGENTS))
        self._screen.say(f"   baton  {self._server}   on a fresh Postgres in {self._short(self._folder / 'postgres')}")

    def _command_of(self, name: str) -> tuple[str, ...]:
        folder = ("--folder", str(self._folder / "reports"))
        return (*WORKERS[name], *(folder if name == "publisher" else ()))

    async def _start_agent(self, name: str) -> None:
        await self._processes.start(name, AGENTS[name], environment={"BATON_ADDRESS": self._server})

    async def _start_server(self, listen: str) -> str:
        environment = {"BATON_DATABASE_URL": self._dsn, "BATON_LOG_FORMAT": "json"}
        command = ("baton.cli", "--output", "json", "serve", "--listen", listen)
        return await self._processes.start("server", *command, environment=environment)

    async def _register(self, client: Client) -> None:
        self._screen.title("Workers: any gRPC server; the contract is read by server reflection")
        rows = []
        for name, address in self._addresses.items():
            worker = await client.register_worker(name, address)
            rows.append((name, address, ", ".join(contract.service for contract in worker.services)))
        for name in AGENTS:
            worker = await client.get_worker(name)
            services = ", ".join(contract.service for contract in worker.services)
            rows.append((name, worker.endpoints[0].address, services))
        self._screen.table(("worker", "address", "services"), rows)
        self._screen.title("Workflows: every binding is checked against those contracts")
        await self._command("workflow", "apply", *WORKFLOWS)

    async def _orders(self, client: Client) -> None:
        found = orders.read_orders(self._root / "examples/orders/orders.jsonl")
        total = len(found.inputs)
        self._screen.title(
            f"{total} orders, {orders.AT_ONCE} at a time; payments leave 15 % of the calls without an answer"
        )
        changed = asyncio.Event()

        def on_change() -> None:
            changed.set()
            self._screen.update(found.outcomes, found.under_way, total, self._note)

        start = time.monotonic()
        with self._screen.progress():
            async with asyncio.TaskGroup() as group:
                group.create_task(orders.submit_all(client, found, on_change))
                group.create_task(self._trouble(found, changed))
        seconds = time.monotonic() - start
        self._screen.say(f"   all {total} runs ended in {seconds:.1f} s")
        self._screen.table(
            ("outcome", "# orders", "# expected"),
            [
                (name, str(found.outcomes[name]), str(orders.EXPECTED.get(name, 0)))
                for name in sorted({*orders.EXPECTED, *found.outcomes}, key=lambda name: -found.outcomes[name])
            ],
        )
        self._wrong += found.wrong
        if dict(found.outcomes) != orders.EXPECTED:
            self._wrong.append(f"the orders ended as {dict(found.outcomes)}, expected was {orders.EXPECTED}")
        await self._tell_orders(found)

    async def _trouble(self, found: orders.Orders, changed: asyncio.Event) -> None:
        """Kills the express carrier, and later the server, in the middle of it all."""

        async def ended(count: int) -> None:
            while found.ended < count:
                changed.clear()
                await changed.wait()

        await ended(CARRIER_DIES_AT)
        await self._processes.kill("express-carrier")
        self._say(found, "kill -9 express-carrier: `ship` falls back to the standard carrier")
        await ended(SERVER_DIES_AT)
        under_way = found.under_way
        await self._processes.kill("server")
        found.crash_time = time.time_ns() // 1_000
        self._say(found, f"kill -9 server, with {under_way} runs under way")
        start = time.monotonic()
        await self._start_server(self._server)
        self._say(
            found, f"server started again after {time.monotonic() - start:.1f} s; it adopts the runs from Postgres"
        )
        before = found.ended
        await ended(before + 1)
        self._say(found, f"runs go on {time.monotonic() - start:.1f} s after the kill")

    def _say(self, found: orders.Orders, text: str) -> None:
        self._note = text.partition(":")[0]
        self._screen.say(f"   {found.ended:>3} ended  {text}", "bold yellow")

    async def _tell_orders(self, found: orders.Orders) -> None:
        double = await orders.check_payments(found, self._addresses["payments"])
        self._wrong += double
        paid = sum(bool(output.payment_id) for output in found.outputs.values())
        self._screen.say(
            f"   {found.retried()} attempts were made again, {found.redelivered()} calls sent again after the crash;"
        )
        self._screen.say(
            f"   the payments worker holds {paid} payments for {paid} paid orders: nobody paid twice"
            if not double
            else f"   {len(double)} orders have wrong payments",
            "green" if not double else "red",
        )
        declined = found.first("PAYMENT_DECLINED")
        if declined is not None:
            self._screen.title("A declined card takes another branch")
            await self._command("run", "get", declined.run_id)
        lost = found.shipped_by_fallback()
        if lost:
            self._screen.title(f"The dead carrier: {len(lost)} orders went by the other one; here is one of them")
            await self._command("run", "get", _fullest(lost).run_id)
        else:
            self._wrong.append("no order was shipped by the fallback although the express carrier was dead")
        hit = found.hit_by_crash()
        if hit:
            self._screen.title(
                f"The killed server: {len(hit)} runs were in the middle of a call; where the time of one went"
            )
            await self._command("run", "get", _fullest(hit).run_id, "--waterfall")
        else:
            self._wrong.append("no run was in the middle of a call when the server was killed")

    async def _documents(self, client: Client) -> None:
        self._screen.title(
            "This repository's own texts are read: split, extract and score side by side, summarise, report"
        )
        start = time.monotonic()
        reports, wrong = await documents.read_all(client)
        headers = ("document", "# sections", "# words", "# reading ease", "key terms")
        shown = headers if self._screen.width >= WIDE else headers[:3]
        rows = [
            (
                report.document_name,
                str(report.counts["sections"]),
                str(report.counts["words"]),
                f"{report.readability.reading_ease:.0f}",
                ", ".join(report.key_terms[:2]),
            )
            for report in reports
        ]
        self._screen.table(shown, [row[: len(shown)] for row in rows], limit=DOCUMENTS_SHOWN)
        self._screen.say(f"   {len(reports)} documents in {time.monotonic() - start:.1f} s")
        self._wrong += wrong
        if not reports:
            self._wrong.append("no document was read")

    async def _agents(self) -> None:
        self._screen.title("A planner asks other agents until a reviewer is content; a person has the last word")
        self._screen.say(f"   {agents.REQUESTER} asks: {agents.QUESTION}")
        start = time.monotonic()

        async def kill() -> None:
            await self._processes.kill("planner")
            self._screen.say("   kill -9 planner, in the middle of its loop; it is started again", "bold yellow")
            await self._start_agent("planner")

        async def show(run_id: str) -> None:
            await self._command("run", "get", run_id)
            await self._command("approval", "ls")

        answered = await agents.answer(self._server, kill, show)
        self._wrong += answered.wrong
        self._screen.say(
            f"   the planner was called {answered.attempts} times and asked {answered.asked} things of others once"
        )
        self._screen.say(
            f"   {agents.APPROVER} approved the request {answered.approval.request_hash[:12]}…, and it was published: "
            f"{self._short(Path(answered.published.file))}, {answered.published.bytes:,} bytes "
            f"({time.monotonic() - start:.1f} s)",
            "green",
        )

    async def _look(self, client: Client) -> None:
        self._screen.title("Where it all is: in Postgres")
        newest = await anext(aiter(client.list_runs('workflow = "fulfil-order"', page_size=1)))
        run = await client.get_run(newest.run_id)
        connection = await asyncpg.connect(self._dsn)
        try:
            states = await connection.fetch(_RUNS)
            events = await connection.fetch(_EVENTS, run.run_id)
        finally:
            await connection.close()
        names = {value: name.removeprefix("RUN_STATE_") for name, value in run_pb2.RunState.items()}
        self._screen.say("   SELECT state, count(*), … FROM runs GROUP BY state", "dim")
        self._screen.table(
            ("state", "# runs", "# events"),
            [(f"{row['state']} {names[row['state']]}", str(row["runs"]), str(row["events"])) for row in states],
        )
        self._screen.say(f"   SELECT … FROM events WHERE run_id = '{run.run_id}' LIMIT 6", "dim")
        kinds = {field.number: field.name.upper() for field in event_pb2.RunEvent.DESCRIPTOR.fields}
        headers = ("sequence", "time", "kind", "step", "attempt")
        rows = [{**row, "kind": f"{row['kind']} {kinds[row['kind']]}"} for row in events]
        self._screen.table(headers, [[str(row[name]) for name in headers] for row in rows])
        self._screen.say(f"   trace of that run: {run.trace_id} (set OTEL_EXPORTER_OTLP_ENDPOINT to export it)")
        unended = sum(row["runs"] for row in states if row["state"] < run_pb2.RUN_STATE_SUCCEEDED)
        if unended:
            self._wrong.append(f"{unended} runs have not ended")

    async def _command(self, *arguments: str) -> None:
        """Runs the command line as a person would, and shows it."""
        self._screen.say(f"   $ baton {' '.join(arguments)}", "cyan")
        sys.stdout.flush()
        command = (sys.executable, "-m", "baton.cli", "--server", self._server, *arguments)
        process = await asyncio.create_subprocess_exec(*command, cwd=self._root)
        try:
            if await process.wait() != 0:
                self._wrong.append(f"baton {' '.join(arguments)} ended with {process.returncode}")
        finally:
            if process.returncode is None:
                process.kill()

    def _verdict(self, seconds: float) -> int:
        if self._wrong:
            self._screen.title(f"Not as told ({seconds:.0f} s)")
            for each in self._wrong[:20]:
                self._screen.say(f"   ✗ {each}", "red")
            if len(self._wrong) > 20:
                self._screen.say(f"   … and {len(self._wrong) - 20} more", "red")
            self._screen.say(f"   logs: {self._short(self._folder / 'logs')}")
            return 1
        self._screen.title(f"All as told, in {seconds:.0f} s. Everything is stopped.")
        self._screen.say("   Look around in what it left:")
        self._screen.say(f"   $ baton dev --directory {self._short(self._folder / 'postgres')}", "cyan")
        self._screen.say("   $ baton run ls --state SUCCEEDED --filter 'attributes.country = \"pl\"'", "cyan")
        return 0

    def _short(self, path: Path) -> str:
        return str(path.relative_to(self._root) if path.is_relative_to(self._root) else path)


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def _fullest(runs: list[run_pb2.Run]) -> run_pb2.Run:
    """The run of which there is most to tell."""
    return max(runs, key=lambda run: sum(len(step.attempts) for step in run.steps))
