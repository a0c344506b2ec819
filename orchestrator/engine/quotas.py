"""Quotas: which limits a step's call counts in. How much of them is in use is counted in permits.py."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from baton.v1 import limit_pb2

from orchestrator.engine.limit_ports import LimitRow
from orchestrator.engine.live import LiveRun
from orchestrator.engine.permits import Kind, Pool

KEY_CHARACTERS = 128
"""Longest key that is kept as it is; of longer ones the hash stands for them."""


class NamespaceLimits:
    """The limits of a namespace, found by what they bound."""

    def __init__(self, rows: Iterable[LimitRow]) -> None:
        self.by_name: Mapping[str, LimitRow] = {row.name: row for row in rows}
        self._everywhere: list[Pool] = []
        self._by_method: dict[str, list[Pool]] = {}
        self._by_worker: dict[str, list[Pool]] = {}
        for row in self.by_name.values():
            pool = Pool(row.name)
            if row.scope == limit_pb2.LIMIT_SCOPE_NAMESPACE:
                self._everywhere.append(pool)
            elif row.scope == limit_pb2.LIMIT_SCOPE_METHOD:
                self._by_method.setdefault(row.target, []).append(pool)
            elif row.scope == limit_pb2.LIMIT_SCOPE_WORKER:
                self._by_worker.setdefault(row.target, []).append(pool)

    def bounds(self, worker: str) -> bool:
        """Tells whether there is a limit for a worker."""
        return worker in self._by_worker

    def kind(self, method: str, named: Sequence[Pool], worker: str) -> Kind:
        """Returns what a call of `method` counts in; `worker` is empty where none of the workers has a limit."""
        of_worker = self._by_worker.get(worker, ()) if worker else ()
        return (*self._everywhere, *self._by_method.get(method, ()), *of_worker, *named)

    def kinds(self, method: str, named: Sequence[Pool], workers: Iterable[str]) -> tuple[list[str], tuple[Kind, ...]]:
        """Returns the workers, each once, and what a call counts in at each of them."""
        each = list(dict.fromkeys(workers))
        return each, tuple(self.kind(method, named, worker) for worker in each)

    def has_rate(self, kinds: Iterable[Kind]) -> bool:
        """Tells whether a limit of any of `kinds` bounds how many calls start in a time."""
        rows = (self.by_name.get(pool.limit) for kind in kinds for pool in kind)
        return any(row is not None and row.rate is not None for row in rows)

    def fault(self, named: Sequence[Pool]) -> str:
        """Tells what is wrong with the limits that a step names, with the cure; "" where nothing is."""
        for pool in named:
            row = self.by_name.get(pool.limit)
            if row is None:
                return f"no limit is named {pool.limit}; apply one of the scope KEY with ApplyLimit"
            if row.scope != limit_pb2.LIMIT_SCOPE_KEY:
                return f"the limit {pool.limit} is not of the scope KEY, so that no step can name it; apply it as such"
        return ""


NO_LIMITS = NamespaceLimits(())


def read_pools(live: LiveRun, step: int) -> tuple[Pool, ...]:
    """Evaluates the keys of the limits that a step names. Raises EvaluationFailed."""
    bounding = live.data.bounding_step(step)
    limits = live.data.step(bounding).limits
    if not limits:
        return ()
    scope = live.data.scope_of(bounding)
    return tuple(Pool(one.limit, _short(one.key(scope))) for one in limits)


def _short(key: str) -> str:
    return key if len(key) <= KEY_CHARACTERS else "sha256:" + hashlib.sha256(key.encode()).hexdigest()
