"""Wishes of queues: what the next call of a queue needs of limits, and what the queue keeps in hand until it is made.

What may not enter: which queue is next, and which endpoint its call goes to (admission.py); who gets a permit
(permits.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from baton.v1 import run_pb2

from orchestrator.engine import waits
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.choice import fitting, refusal
from orchestrator.engine.groups import able_groups
from orchestrator.engine.homes import Homes, Wish
from orchestrator.engine.permits import Kind, Permit
from orchestrator.engine.queues import MethodQueue, Queues
from orchestrator.engine.quotas import NamespaceLimits
from orchestrator.engine.waits import Wait

MAX_WANTED = 100
"""Permits of limits that one queue asks for at a time."""


def take_permit(
    catalogue: Catalogue,
    homes: Homes,
    queue: MethodQueue,
    limits: NamespaceLimits,
    granted: Callable[[MethodQueue], None],
) -> tuple[Permit | None, str | None] | Wait:
    """Takes a permit of the limits that bound the next call of a queue, with the worker that it is for, None for any;
    or says why there is none, or why no call can be made whatever the limits. `granted` is called with the queue where
    one comes later."""
    key = queue.key
    fault = limits.fault(key.pools)
    if fault:
        wish_nothing(homes, queue)
        return Wait(run_pb2.WAIT_KIND_LIMIT, fault)
    groups = fitting(catalogue, key)
    able = able_groups(groups)
    if not able:
        return refusal(catalogue, key, groups)
    workers, kinds = limits.kinds(key.method, key.pools, (group.worker for group in able))
    if not any(kinds):
        wish_nothing(homes, queue)
        return None, None
    wish = queue.wish
    if wish is None or not _is_for(wish, kinds):
        wish_nothing(homes, queue)
        wish = queue.wish = Wish(key.namespace, kinds, key.priority, lambda: granted(queue))
    room = sum(group.room for group in groups)
    number = homes.take(wish, min(len(queue.steps), room, MAX_WANTED))
    if number is None:
        return waits.FOR_PERMIT
    kind = wish.kinds[number]
    return Permit(key.namespace, kind), workers[kinds.index(kind)]


def _is_for(wish: Wish, kinds: Sequence[Kind]) -> bool:
    """Tells whether a wish is for these. In which order they come changes with every call: the least busy worker's is
    first. One that stands in a line, or has what it stood there for, keeps its own order: who asks anew for that would
    stand behind all others."""
    stands = wish.wanted or wish.in_hand
    return set(wish.kinds) == set(kinds) if stands else wish.kinds == kinds


def keep_in_hand(homes: Homes, queues: Queues, queue: MethodQueue, limits: NamespaceLimits | None) -> None:
    """Gives back what a queue cannot use. While every endpoint is busy it may keep one permit until its turn comes:
    else the permit could be gone whenever an endpoint is free, and the other way round. One that counts in a rate is
    not kept, as it would count when it was given, however much later its call starts; but where its home is another
    replica, which takes a while to give one in which the endpoint is busy again."""
    if queue.wish is None or queue.wait is waits.FOR_PERMIT:
        return
    if queue.wait is None or queue.wait.kind != run_pb2.WAIT_KIND_LIMIT:
        wish_nothing(homes, queue)
    else:
        at_home = homes.address_of_home(queue.wish.namespace) is None
        counts = at_home and limits is not None and limits.has_rate(queue.wish.kinds)
        homes.keep(queue.wish, int(queues.reserve(queue, bool(queue.wish.in_hand) and not counts)))


def wish_nothing(homes: Homes, queue: MethodQueue) -> None:
    """Lets a queue want no permits any more, and gives back what it has in hand."""
    if queue.wish is not None:
        wish, queue.wish = queue.wish, None
        homes.withdraw(wish)
