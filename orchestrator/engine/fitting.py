"""Fitting: whether endpoints of a contract can serve a revision that is pinned to others, by what it sets and reads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from orchestrator.contracts.compatibility import incompatibilities, takes_the_place
from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.descriptors import Contract
from orchestrator.contracts.uses import MethodUse, uses_of
from orchestrator.contracts.violations import Violation

USES_CACHE = 256
"""Revisions whose uses are remembered."""

ANSWERS_CACHE = 10_000
"""Answers that are remembered, of each kind."""

_Key = tuple[str, str, str]
_Answer = TypeVar("_Answer", bool, str)


@dataclass(frozen=True, slots=True)
class Pins:
    """What decides which contracts can serve a step: those that its types are of, and the revision that tells what is
    used of them. Without one, everything may be used."""

    contract_digests: tuple[str, ...]
    revision: str = ""
    compiled: CompiledWorkflow | None = field(default=None, compare=False, repr=False)


def pins_of(compiled: CompiledWorkflow) -> Pins:
    """Returns what steps of a workflow are pinned to."""
    return Pins(compiled.contract_digests, compiled.revision, compiled)


class Fitting:
    """Answers for pairs of a contract and a revision; each is worked out once and remembered for a while. `find` gives
    the contracts that revisions are pinned to."""

    def __init__(self, find: Callable[[str], Contract | None]) -> None:
        self._find = find
        self._uses: OrderedDict[str, tuple[MethodUse, ...]] = OrderedDict()
        self._misfits: OrderedDict[_Key, str] = OrderedDict()
        self._replaces: OrderedDict[_Key, bool] = OrderedDict()

    def misfit(self, contract: Contract, pins: Pins, method: str) -> str:
        """Returns the first reason why endpoints of a contract cannot serve a method to what is pinned, with its place
        in the workflow; "" where they can."""
        if pins.compiled is None:
            return (
                "" if self.replaces(contract, pins.contract_digests, method) else "it differs from that of the request"
            )
        key = (contract.digest, pins.revision, method)
        return _remembered(self._misfits, key, partial(self._first, contract, pins.compiled, method))

    def _first(self, contract: Contract, compiled: CompiledWorkflow, method: str) -> str:
        found = self.violations(contract, compiled, method)
        return f"{found[0].path}: {found[0].message}" if found else ""

    def violations(self, contract: Contract, compiled: CompiledWorkflow, method: str) -> list[Violation]:
        """Returns all reasons, by the paths of what the workflow sets and reads."""
        if self.replaces(contract, compiled.contract_digests, method):
            return []
        uses = self._uses.get(compiled.revision)
        if uses is None:
            uses = self._uses[compiled.revision] = uses_of(compiled)
            if len(self._uses) > USES_CACHE:
                self._uses.popitem(last=False)
        of_method = [use for use in uses if use.method == method]
        if not of_method:
            return [Violation("steps", "UNKNOWN_METHOD", f"what the workflow uses of {method} is not known")]
        return list(dict.fromkeys(one for use in of_method for one in incompatibilities(use, contract)))

    def replaces(self, contract: Contract, pinned: Iterable[str], method: str) -> bool:
        """Tells whether a contract is one of those pinned that serve a method, or can take the place of all of them:
        then it serves everybody whom they serve, whatever they use."""
        serving = [one for digest in pinned if (one := self._find(digest)) is not None and serves(one, method)]
        if any(one.digest == contract.digest for one in serving):
            return True
        return bool(serving) and all(
            _remembered(
                self._replaces, (contract.digest, one.digest, method), partial(takes_the_place, contract, one, method)
            )
            for one in serving
        )


def serves(contract: Contract, method: str) -> bool:
    """Tells whether a contract has the method `package.Service/Method`."""
    return any(name == method for name, _ in contract.methods())


def _remembered(known: OrderedDict[_Key, _Answer], key: _Key, work_out: Callable[[], _Answer]) -> _Answer:
    found = known.get(key)
    if found is None:
        found = known[key] = work_out()
        if len(known) > ANSWERS_CACHE:
            known.popitem(last=False)
    return found
