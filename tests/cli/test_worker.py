"""`baton worker`: workers are added, shown, drained and removed, and refused with their cure."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import descriptor_pb2

from .conftest import Command
from .programs import Program


async def test_workers_are_listed_with_their_services(shop: Command, workers: dict[str, Program]) -> None:
    listed = await shop("worker", "ls")
    assert listed.code == 0
    line = next(line for line in listed.out.splitlines() if line.startswith("payments"))
    assert workers["payments"].address in line
    assert "shop.v1.PaymentsService" in line

    told = {worker["name"]: worker for worker in (await shop("worker", "ls", "-o", "json")).json}
    assert told.keys() >= workers.keys()
    assert told["payments"]["services"][0]["service"] == "shop.v1.PaymentsService"


async def test_a_worker_is_shown_with_its_methods(shop: Command) -> None:
    shown = await shop("worker", "get", "payments")
    assert "shop.v1.PaymentsService/Charge" in shown.out
    assert "shop.v1.ChargeRequest" in shown.out


async def test_a_second_address_is_added_drained_and_removed(shop: Command, workers: dict[str, Program]) -> None:
    address = workers["notifications"].address
    assert (await shop("worker", "add", "spare", address, "--max-in-flight", "7")).code == 0

    drained = await shop("worker", "drain", "spare", "--address", address, "-o", "json")
    assert drained.json["endpoints"][0]["state"] == "ENDPOINT_STATE_DRAINING"
    assert drained.json["max_in_flight"] == 7

    removed = await shop("worker", "rm", "spare")
    assert (removed.code, removed.out) == (0, "")
    gone = await shop("worker", "get", "spare")
    assert gone.code == 6
    assert "baton worker ls" in gone.error


async def test_another_service_under_a_known_name_is_warned_of(shop: Command, workers: dict[str, Program]) -> None:
    inventory, payments = workers["inventory"].address, workers["payments"].address
    first = await shop("worker", "add", "stock", inventory)
    assert (first.code, first.error) == (0, "")
    joined = await shop("worker", "add", "stock", payments)
    assert joined.code == 0
    assert f"warning: {payments} brought services that stock did not have: shop.v1.PaymentsService" in joined.error
    assert f"baton worker rm stock --address {payments}" in joined.error
    assert "shop.v1.InventoryService/" in joined.out
    assert "shop.v1.PaymentsService/" in joined.out
    again = await shop("worker", "add", "stock", payments)
    assert (again.code, again.error) == (0, "")
    assert (await shop("worker", "rm", "stock")).code == 0


async def test_an_address_without_a_port_is_refused_with_its_form(command: Command) -> None:
    refused = await command("worker", "add", "nobody", "localhost")
    assert (refused.code, refused.out) == (1, "")
    assert "give host:port" in refused.error
    assert "INVALID_REQUEST" in refused.error


async def test_baton_is_no_worker_unless_its_services_are_named(command: Command, server: Program) -> None:
    refused = await command("worker", "add", "itself", server.address)
    assert (refused.code, refused.out) == (1, "")
    assert "a Baton answers there, not a worker; give the address of the worker" in refused.error
    assert (await command("worker", "get", "itself")).code == 6
    named = await command("worker", "add", "itself", server.address, "--service", "baton.v1.RunService")
    assert named.code == 0, named.error
    assert (await command("worker", "rm", "itself")).code == 0


async def test_a_contract_can_be_uploaded(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "contract.binpb"
    contract = descriptor_pb2.FileDescriptorSet()
    proto = contract.file.add(name="toy.proto", package="toy.v1", syntax="proto3")
    proto.message_type.add(name="Ping")
    service = proto.service.add(name="ToyService")
    service.method.add(name="Call", input_type=".toy.v1.Ping", output_type=".toy.v1.Ping")
    service_b = proto.service.add(name="OtherService")
    service_b.method.add(name="Call", input_type=".toy.v1.Ping", output_type=".toy.v1.Ping")
    file.write_bytes(contract.SerializeToString())

    added = await command(
        "worker",
        "add",
        "toy",
        "127.0.0.1:1",
        "--descriptor-set",
        str(file),
        "--service",
        "toy.v1.ToyService",
        "-o",
        "json",
    )
    assert added.code == 0, added.error
    assert [each["service"] for each in added.json["services"]] == ["toy.v1.ToyService"]

    file.write_bytes(b"\xff\xff\xff")
    broken = await command("worker", "add", "toy", "127.0.0.1:1", "--descriptor-set", str(file))
    assert broken.code == 1
    assert "is not a FileDescriptorSet" in broken.error


async def test_a_worker_that_does_not_answer_is_refused_with_a_cure(command: Command) -> None:
    refused = await command("worker", "add", "nobody", "127.0.0.1:1")
    assert (refused.code, refused.out) == (1, "")
    assert "WORKER_UNREACHABLE" in refused.error
    assert "start the worker" in refused.error
