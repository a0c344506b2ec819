"""Signals and approvals from the command line: what waits is shown exactly, and decided on by its hash."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from .conftest import Command

WAITING = """\
name: ask-stock
steps:
  - id: asked
    wait_signal: {signal: ask, type: shop.v1.GetStockRequest}
  - id: stock
    method: shop.v1.InventoryService/GetStock
    request: {skus: {path: steps.asked.output.skus}}
    approval: {description: "May they see our stock?"}
  - id: again
    method: shop.v1.InventoryService/GetStock
    request: {skus: {list: {elements: [{path: item}]}}}
    map: {items: {path: steps.asked.output.skus}}
    after: [stock]
"""


@pytest.fixture
async def waiting(shop: Command, tmp_path: Path) -> str:
    """A run that waits for a signal."""
    path = tmp_path / "waiting.yaml"
    path.write_text(WAITING)
    assert (await shop("workflow", "apply", str(path))).code == 0
    submitted = await shop("run", "submit", "ask-stock")
    assert submitted.code == 0, submitted.error
    return submitted.out.strip()


async def asked(shop: Command, run_id: str) -> str:
    """Sends the signal, and waits until the run waits for a decision; gives the hash."""
    sent = await shop("run", "signal", run_id, "ask", "-i", 'skus=["TEA-ASSAM-250"]')
    assert (sent.code, sent.error) == (0, "it has arrived\n")
    async with asyncio.timeout(20):
        while True:
            found = (await shop("approval", "ls", "--run", run_id, "-o", "json")).json
            if found:
                digest: str = found[0]["request_hash"]
                return digest


async def test_a_request_is_shown_and_approved(shop: Command, waiting: str) -> None:
    shown = await shop("run", "get", waiting)
    assert "WAITING" in shown.out
    digest = await asked(shop, waiting)
    listed = await shop("approval", "ls")
    assert digest[:12] in listed.out
    assert "May they see our stock?" in listed.out
    told = await shop("approval", "get", waiting, "stock")
    assert told.code == 0
    assert digest in told.out
    assert told.out.endswith('request of type shop.v1.GetStockRequest\n{"skus": ["TEA-ASSAM-250"]}\n')

    nobody = await shop("approval", "approve", waiting, "stock", "--principal", "grace")
    assert nobody.code == 2
    assert "standard input is no terminal" in nobody.error
    assert f"`baton approval get {waiting} stock`, then give --hash" in nobody.error
    assert digest not in nobody.error, "it is to be seen with the request"
    other = await shop("approval", "approve", waiting, "stock", "--hash", "0" * 64, "--principal", "grace")
    assert other.code == 1
    assert "APPROVAL_CHANGED" in other.error
    assert digest in other.error
    begun = await shop("approval", "approve", waiting, "stock", "--hash", "0" * 12, "--principal", "grace")
    assert begun.code == 1
    assert f"another hash, {digest}" in begun.error
    own = await shop("approval", "approve", waiting, "stock", "--hash", digest)
    assert own.code == 1
    assert "APPROVER_NOT_ALLOWED" in own.error

    principal = {"BATON_PRINCIPAL": "grace"}
    approved = await shop("approval", "approve", waiting, "stock", "--hash", digest[:8], changes=principal)
    assert (approved.code, approved.error) == (0, f"approved {digest[:12]} of stock\n")
    ended = await shop("run", "wait", waiting)
    assert ended.code == 0, ended.error
    tree = (await shop("run", "get", waiting)).out.splitlines()
    assert [line.split()[0] for line in tree[-4:]] == ["asked", "stock", "again", "0"]
    events = (await shop("run", "events", waiting)).out
    for line in ("for the signal ask", f"of {digest[:12]} for shop.v1", "approved by grace", "for 1 items"):
        assert line in events
    gone = await shop("approval", "get", waiting, "stock")
    assert gone.code == 6


async def test_a_request_is_denied(shop: Command, waiting: str) -> None:
    digest = await asked(shop, waiting)
    denied = await shop(
        "approval", "deny", waiting, "stock", "--hash", digest, "--reason", "not them", "--principal", "grace"
    )
    assert denied.code == 0, denied.error
    again = await shop("approval", "deny", waiting, "stock", "--hash", digest, "--principal", "grace")
    assert (again.code, again.error) == (denied.code, denied.error)
    second = await shop("approval", "approve", waiting, "stock", "--hash", digest, "--principal", "ada")
    assert second.code == 6
    assert "grace has denied it" in second.error
    ended = await shop("run", "wait", waiting)
    assert ended.code == 3
    assert "grace denied the request: not them" in ended.out


async def test_a_signal_is_checked_before_it_is_sent(shop: Command, waiting: str) -> None:
    unknown = await shop("run", "signal", waiting, "stop", "-i", "a=1")
    assert unknown.code == 1
    assert "the workflow ask-stock has no signal stop; its signals are ask" in unknown.error
    wrong = await shop("run", "signal", waiting, "ask", "-i", "sku=x")
    assert "GetStockRequest has no field sku" in wrong.error
    refused = await shop("run", "signal", waiting, "stop")
    assert refused.code == 6
    assert "SIGNAL_NOT_FOUND" in refused.error
    for said in ("it has arrived", "it had arrived before"):
        sent = await shop("run", "signal", waiting, "ask", "--request-id", "once")
        assert (sent.code, sent.error) == (0, f"{said}\n")
