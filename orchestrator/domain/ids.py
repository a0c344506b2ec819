"""Identifiers. Every key begins with the namespace: nothing of one is ever found under another's key."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID


class RunKey(NamedTuple):
    """Identifies a run."""

    namespace: str
    run_id: UUID


class WorkerKey(NamedTuple):
    """Identifies a worker."""

    namespace: str
    worker: str


class EndpointKey(NamedTuple):
    """Identifies one address of a worker."""

    namespace: str
    worker: str
    address: str


class RevisionKey(NamedTuple):
    """Identifies a revision; `workflow` is empty for an inline workflow."""

    namespace: str
    workflow: str
    revision: str
