"""Choice: which endpoint takes the next call of a queue, or why none can now. What may not enter: what a queue waits
for besides (admission.py), and how busy each endpoint is (groups.py)."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.engine import waits
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.groups import EndpointGroup, take_least_busy
from orchestrator.engine.queues import QueueKey
from orchestrator.engine.waits import Wait
from orchestrator.engine.worker_ports import Ticket


def fitting(catalogue: Catalogue, key: QueueKey) -> Sequence[EndpointGroup]:
    """The groups of endpoints that serve the method by a contract that fits."""
    return catalogue.fitting_groups(key.namespace, key.pins, key.method)


def choose(catalogue: Catalogue, key: QueueKey, worker: str | None = None) -> tuple[Endpoint, Ticket] | Wait:
    """Takes the least busy endpoint that can take a call now, or says why none can. With `worker` it is one of its
    groups."""
    groups = fitting(catalogue, key)
    return take_least_busy(groups, worker) or refusal(catalogue, key, groups)


def refusal(catalogue: Catalogue, key: QueueKey, groups: Sequence[EndpointGroup]) -> Wait:
    """Says why no endpoint of `groups`, those that fit, can take a call now."""
    if groups:
        return waits.none_free(key.method, groups)
    unfit = catalogue.groups(key.namespace, key.method)
    why = catalogue.misfit(unfit[0].contract_digest, key.pins, key.method) if unfit else ""
    return waits.nobody(key.method, why)
