"""What replicas do together: share what a dead one leaves, watch each other's runs, know each other's catalogue, and
settle commits of which nobody learned."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

import grpc
import grpc.aio
import pytest
from baton.v1 import run_pb2

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_kills import Submitter, diamond, require_sound
from tests.acceptance.test_parking import submit
from tests.acceptance.test_replicas import Connect, require_results
from tests.acceptance.test_rolling import owners
from tests.acceptance.test_watches import chain
from tests.acceptance.wire import ENDING, Baton, eventually
from tests.postgres.proxy import LossyProxy, lossy_proxy

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
ORPHANS = 2_500
_NO_TIME = {"duration": {"literal": "0s"}}
ONE_TRANSPORT = pytest.mark.parametrize("transport", ["unary"], indirect=True)
"""How calls go to the workers makes no difference here."""


async def test_thousands_of_orphaned_runs_are_shared_by_those_who_are_left(
    start_server: StartServer, connect: Connect
) -> None:
    busy = {"BATON_PARK_SECONDS": "3600"}
    dying = await start_server(**busy)
    run_ids = await submit(connect(dying), {"steps": [{"id": "a", "wait_signal": {"signal": "go"}}]}, ORPHANS)
    heirs = [await start_server(**busy, BATON_ADOPTION_BATCH="100") for _ in range(2)]
    await dying.kill()

    async def adopted() -> Counter[str]:
        found = Counter((await owners(dying.dsn)).values())
        return found if found[""] == found[dying.address] == 0 else Counter()

    shares = await eventually(adopted, 60)
    assert sum(shares.values()) == ORPHANS
    assert min(shares[heir.address] for heir in heirs) > ORPHANS / 5, "one took nearly all"
    runs = await invariants.read_runs(dying.dsn)
    assert not invariants.journal_faults(runs)
    for heir, run_id in zip(heirs, (run_ids[0], run_ids[-1]), strict=True):
        baton = connect(heir)
        await baton.signal(run_id, "go")
        assert (await baton.end(run_id)).state == SUCCEEDED


@ONE_TRANSPORT
async def test_a_watch_goes_on_at_another_server_while_the_owner_is_killed(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    """Five events at the one server, five at the other, and so on; the owner dies on the way."""
    owner, other = await start_server(), await start_server()
    at = [connect(owner), connect(other)]
    await at[0].register("lab", lab_process.address)
    run = await at[0].submit(chain(contract, 25, {"delay": "0.03s"}))
    cursor, seen, turn = "", [], 0
    ended = False
    while not ended:
        baton = at[turn % 2] if len(seen) < 15 else at[1]
        turn += 1
        if len(seen) >= 15 and owner.process is not None and owner.process.returncode is None:
            await owner.kill()
        call, count = baton.watch(run.run_id, cursor), 0
        async for update in call:
            cursor = update.cursor
            if update.HasField("snapshot"):
                seen += (await baton.events(run.run_id))[: update.snapshot.last_sequence]
            elif update.HasField("event"):
                seen.append(update.event)
                count += 1
                ended = update.event.WhichOneof("kind") in ENDING
            if ended or count == 5:
                break
        call.cancel()
    journal = await at[1].events(run.run_id)
    assert seen == journal
    stored = await invariants.read_runs(owner.dsn)
    assert stored[run.run_id].epoch > 1, "the owner was killed too late"
    assert (await at[1].end(run.run_id)).state == SUCCEEDED


@ONE_TRANSPORT
async def test_a_catalogue_is_the_same_at_every_server_within_a_lease(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    first, second = connect(await start_server()), connect(await start_server())
    await first.register("lab", lab_process.address)
    definition = {"name": "greeting", "steps": [{"id": "a", "method": contract.method("Lab/Do")}]}
    revision = await first.apply(definition)

    # A name that was never heard of is looked up, and the worker of its step is found within a renewal.
    run = await second.submit("greeting", wait_seconds=10)  # type: ignore[arg-type]
    assert (run.state, run.revision) == (SUCCEEDED, revision.revision)
    newer = await first.apply(definition | {"steps": [*definition["steps"], {"id": "b", "sleep": _NO_TIME}]})  # type: ignore[misc]

    async def newest() -> bool:
        return (await second.submit("greeting")).revision == newer.revision  # type: ignore[arg-type]

    await eventually(newest, 5)


@ONE_TRANSPORT
async def test_commits_whose_answers_are_lost_are_settled_while_runs_go_on(
    database: str, connect: Connect, contract: Contract, lab_process: LabProcess, tmp_path: Path
) -> None:
    """The proxy carries out what the server sends and cuts the connection instead of passing the answer on."""
    with tempfile.TemporaryDirectory(prefix="baton-test-") as directory:
        async with lossy_proxy(database, Path(directory)) as (proxy, dsn):
            server = ServerProcess(dsn, tmp_path / "server.log", {"BATON_LEASE_SECONDS": "10"})
            await server.start()
            try:
                baton = connect(server)
                await baton.register("lab", lab_process.address)
                submitter = Submitter(baton, contract)
                submitting = [
                    asyncio.ensure_future(submitter.submit(number, diamond(contract, "0.2s"))) for number in range(20)
                ]
                for _ in range(6):
                    await lose_an_answer(proxy)
                    await eventually(lambda: answers(baton))
                await asyncio.gather(*submitting)
                await require_results(baton, contract, submitter)
                runs = await require_sound(database, submitter.acknowledged, lab_process)
                assert {run.epoch for run in runs.values()} == {1}, "the lease was lost: nothing had to be settled"
                assert {note.delivery for note in lab_process.notes()} == {1}
            finally:
                await server.kill()


async def lose_an_answer(proxy: LossyProxy) -> None:
    before = proxy.lost
    proxy.loses_answers = True

    async def lost() -> bool:
        return proxy.lost > before

    await eventually(lost)
    proxy.loses_answers = False


async def answers(baton: Baton) -> bool:
    """Whether the server reads its database again."""
    try:
        return bool((await baton.worker("lab")).endpoints)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
