"""The limits that a step names: their keys, checked and compiled. What a limit allows is not known here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from baton.v1 import workflow_pb2

from orchestrator.contracts.bindings import BindingCompiler
from orchestrator.contracts.expressions import ExpressionFault, Use
from orchestrator.contracts.graph import Wiring
from orchestrator.contracts.local_names import Locals
from orchestrator.contracts.paths import UNSET
from orchestrator.contracts.reads import Site
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.types import STRING
from orchestrator.contracts.violations import Report


@dataclass(frozen=True, slots=True)
class CompiledLimit:
    """A limit that a step's calls count in. `read_key` gives the key from a scope; None: there is one for all."""

    limit: str
    read_key: Any = None

    def key(self, scope: Scope) -> str:
        """Returns the key, "" where the limit has none or the value is not set. Raises EvaluationFailed."""
        if self.read_key is None:
            return ""
        value = self.read_key(scope)
        return "" if value is UNSET else str(value)


def compile_limits(
    step: workflow_pb2.Step, index: int, visible: Locals, bindings: BindingCompiler, wiring: Wiring, report: Report
) -> tuple[CompiledLimit, ...]:
    """Checks and compiles the limits of a step; what they read becomes an edge of the graph. `visible` are the local
    names of its request."""
    compiled = []
    named: set[str] = set()
    for number, given in enumerate(step.limits):
        path = f"steps[{index}].limits[{number}]"
        if given.limit in named:
            report.add(
                f"{path}.limit", "INVALID_SETTING", f"the step names {given.limit} twice; a call counts in it once"
            )
        named.add(given.limit)
        if not given.key:
            compiled.append(CompiledLimit(given.limit))
            continue
        try:
            expression = bindings.expressions.compile(Use(given.key, index, visible))
        except ExpressionFault as error:
            report.add(f"{path}.key", error.reason, error.message)
            wiring.sites.setdefault(index, []).append(Site(f"{path}.key", error.reads, has_default=True))
            continue
        wiring.sites.setdefault(index, []).append(Site(f"{path}.key", expression.reads))
        if not expression.complete:
            continue
        hint = expression.mismatch(STRING)
        if hint is not None:
            cure = hint or "turn it into one, such as `string(input.customer_number)`"
            text = f"a key is a string, but the expression is {expression.type}; {cure}"
            report.add(f"{path}.key", "TYPE_MISMATCH", text)
            continue
        compiled.append(CompiledLimit(given.limit, expression.reader(STRING)))
    return tuple(compiled)
