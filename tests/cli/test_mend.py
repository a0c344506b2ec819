"""Runs are mended from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Command

PICKY = """\
name: picky-stock
input_type: shop.v1.GetStockRequest
steps:
  - id: stock
    method: shop.v1.InventoryService/GetStock
    request: {skus: {path: input.skus}}
    expect: size(input.skus) == 1
    retry: {max_attempts: 1}
"""

TWO = 'skus=["TEA-ASSAM-250", "TEA-SENCHA-100"]'
ONE = 'skus=["TEA-ASSAM-250"]'


@pytest.fixture
async def failed(shop: Command, tmp_path: Path) -> str:
    """A run that failed for its input."""
    path = tmp_path / "picky.yaml"
    path.write_text(PICKY)
    applied = await shop("workflow", "apply", str(path))
    assert applied.code == 0, applied.error
    submitted = await shop("run", "submit", "picky-stock", "-i", TWO)
    assert submitted.code == 0, submitted.error
    run_id: str = submitted.out.strip()
    assert (await shop("run", "wait", run_id)).code == 3
    return run_id


async def test_a_run_is_retried_with_a_field_changed(shop: Command, failed: str) -> None:
    dry = await shop("run", "retry", failed, "-i", ONE, "--dry-run")
    assert (dry.code, dry.error) == (0, "would begin anew: stock\n")
    assert "FAILED" in dry.out
    told = await shop("run", "retry", failed, "-i", ONE, "--reason", "one at a time")
    assert (told.code, told.error) == (0, "begins anew: stock\n")
    assert (await shop("run", "wait", failed)).code == 0
    again = await shop("run", "retry", failed)
    assert again.code == 1
    assert "RUN_SUCCEEDED" in again.error
    assert "baton run fork" in again.error


async def test_a_step_is_skipped_and_a_run_forked(shop: Command, failed: str) -> None:
    forked = await shop("run", "fork", failed, "stock", "-i", ONE, "-o", "json")
    assert forked.code == 0, forked.error
    assert (await shop("run", "wait", forked.json["run"]["run_id"])).code == 0
    skipped = await shop("run", "skip", failed, "stock")
    assert skipped.code == 0, skipped.error
    assert (await shop("run", "wait", failed)).code == 0


async def test_runs_are_mended_in_bulk(shop: Command, failed: str) -> None:
    terms = 'workflow = "picky-stock" AND state = FAILED'
    dry = await shop("run", "mend", "retry", "--filter", terms, "--dry-run")
    assert dry.code == 0, dry.error
    assert f"{failed}  would be mended" in dry.out
    assert "0 refused" in dry.out
    refused = await shop("run", "mend", "pause", "--filter", terms)
    assert refused.code == 1
    assert f"{failed}  refused: the run has ended" in refused.out
    mixed = await shop("run", "mend", "pause", "--filter", terms, "--revision", "0" * 16)
    assert (mixed.code, "--revision goes with retry" in mixed.error) == (2, True), "it would be a retry"
