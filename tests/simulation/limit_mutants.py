"""Mutants of what keeps limits where their home, or they themselves, change; see mutants.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from baton.internal.v1 import permits_pb2

from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.homes import Homes
from orchestrator.engine.permits import Kind, PermitBook, Pool
from tests.simulation.mutant import UNDOUBTED, Mutant

_received, _use, _refresh = Homes.received, PermitBook._use, Catalogue.refresh


def _received_of_any_set(self: Homes, replica_id: UUID, frame: permits_pb2.ExchangeResponse) -> None:
    frame.generation = self._set.generation
    _received(self, replica_id, frame)


def _use_unheeding(self: PermitBook, pool: Pool, kinds: Sequence[Kind]) -> Any:
    self.empty_since = None
    return _use(self, pool, kinds)


async def _served_by_what_is_under_way(self: Catalogue, namespace: str) -> None:
    entry = self._namespaces.get(namespace)
    if entry is not None and entry.refreshing.locked():
        asked = entry.asked
        async with entry.refreshing:
            if entry.read >= asked:
                return
    await _refresh(self, namespace)


MUTANTS = (
    Mutant(
        "what a home gives by an older set of replicas does not count",
        [(Homes, "received", _received_of_any_set)],
        ("tardy:permits", "leave"),
        parts=("limits", "balance"),
    ),
    Mutant(
        "a home begins with rates used up",
        [(PermitBook, "_use", _use_unheeding)],
        ("leave",),
        parts=("rates",),
    ),
    Mutant(
        "what changed while a catalogue was read is read again",
        [(Catalogue, "refresh", _served_by_what_is_under_way)],
        ("tuning", "tardy:list_limits"),
        "who rests on what has changed reads it again",
        [UNDOUBTED],
        parts=("tuning",),
    ),
)
"""What is given by whom, and what is known of limits."""
