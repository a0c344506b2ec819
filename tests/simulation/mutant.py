"""What a mutant is: a safeguard that is switched off, and the hunt for it; and what stands in the place of many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock
from uuid import UUID

from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.ports import RunEntry
from tests.simulation.database import Database
from tests.simulation.judge import Judge
from tests.simulation.leases import Replica
from tests.simulation.world import Breach, simulate

SEEDS = 400
"""Seeds in which a mutant has to be found."""

Patch = tuple[Any, str, Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A safeguard that is switched off. `stress` is what goes wrong more often for it, `parts` what its worlds have.

    `guard` is what stands behind it, so that alone it does no harm that could be found; `guard_patches` switch that off
    too, and then there must be harm.
    """

    name: str
    patches: Sequence[Patch]
    stress: Sequence[str] = ()
    guard: str = ""
    guard_patches: Sequence[Patch] = ()
    parts: Sequence[str] = ()

    @contextmanager
    def switched_off(self, *, with_guard: bool) -> Iterator[None]:
        """Switches the safeguard off."""
        with ExitStack() as stack:
            for target, attribute, replacement in (*self.patches, *(self.guard_patches if with_guard else ())):
                stack.enter_context(mock.patch.object(target, attribute, replacement))
            yield

    def hunt(self, seeds: int = SEEDS, *, with_guard: bool = True) -> tuple[int, Breach] | None:
        """Looks for the mutant; gives the first seed that finds it, and how."""
        with self.switched_off(with_guard=with_guard):
            for seed in range(1, seeds + 1):
                outcome = simulate(seed, self.stress, self.parts)
                if outcome.breach is not None:
                    return seed, outcome.breach
        return None


def nothing(*_: Any, **__: Any) -> None:
    """Does nothing."""


def empty(*_: Any) -> list[Any]:
    """Finds nothing."""
    return []


def yes(*_: Any) -> bool:
    """Holds always."""
    return True


def no(*_: Any) -> bool:
    """Never holds."""
    return False


def owner_only_by_sequence(self: Database, replica_id: UUID, entry: RunEntry) -> bool:
    run = self.runs.get(entry.key)
    return run is not None and run.unfinished and run.next_sequence == entry.rows[0].sequence


def any_lease(self: Database, replica_id: UUID) -> None:
    self.replicas.setdefault(replica_id, Replica("", 0)).locks += 1


ANY_LEASE: Patch = (Database, "lock", any_lease)
ANY_OWNER: Patch = (Database, "is_owner", owner_only_by_sequence)
UNDOUBTED: Patch = (Catalogue, "doubt", nothing)
UNSEEN: Patch = (Judge, "is_dead", staticmethod(no))
"""Lets the judge pass over what the lease alone forbids, to see what else there is."""
