"""Baton for Python: write typed workflows, run and watch them, and serve workers.

Names are imported when they are first used: `import baton` itself imports neither grpc nor protobuf.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baton.bindings import Binding as Binding
    from baton.bindings import bind as bind
    from baton.calls import Call as Call
    from baton.calls import current as current
    from baton.catalogue import Applied as Applied
    from baton.client import Client as Client
    from baton.conditions import Condition as Condition
    from baton.conditions import cond as cond
    from baton.definitions import WorkflowDefinition as WorkflowDefinition
    from baton.delegation import blocking as blocking
    from baton.delegation import delegate as delegate
    from baton.errors import BatonError as BatonError
    from baton.errors import BindError as BindError
    from baton.errors import CallTimeout as CallTimeout
    from baton.errors import Conflict as Conflict
    from baton.errors import ContractBreaksWorkflows as ContractBreaksWorkflows
    from baton.errors import Failure as Failure
    from baton.errors import InvalidRequest as InvalidRequest
    from baton.errors import NotFound as NotFound
    from baton.errors import RunCancelled as RunCancelled
    from baton.errors import RunFailed as RunFailed
    from baton.errors import RunNotSucceeded as RunNotSucceeded
    from baton.errors import StepFailed as StepFailed
    from baton.errors import Unavailable as Unavailable
    from baton.errors import Violation as Violation
    from baton.errors import WaitTimeout as WaitTimeout
    from baton.payloads import OutputTypeError as OutputTypeError
    from baton.policies import ApprovalRule as ApprovalRule
    from baton.policies import Delivery as Delivery
    from baton.policies import Retry as Retry
    from baton.policies import branch as branch
    from baton.policies import fallback as fallback
    from baton.references import default as default
    from baton.references import expr as expr
    from baton.references import expression as expression
    from baton.runs import RunHandle as RunHandle
    from baton.schedules import Backfilled as Backfilled
    from baton.schedules import Overlap as Overlap
    from baton.schedules import schedule as schedule
    from baton.steps import CallStep as CallStep
    from baton.steps import EntriesOutput as EntriesOutput
    from baton.steps import MapOutput as MapOutput
    from baton.steps import Step as Step
    from baton.worker import Worker as Worker
    from baton.workflows import Workflow as Workflow
    from baton.workflows import workflow as workflow

_HOMES = {
    "bindings": ("Binding", "bind"),
    "conditions": ("Condition", "cond"),
    "calls": ("Call", "current"),
    "catalogue": ("Applied",),
    "client": ("Client",),
    "definitions": ("WorkflowDefinition",),
    "delegation": ("blocking", "delegate"),
    "errors": (
        "BatonError",
        "BindError",
        "CallTimeout",
        "Conflict",
        "ContractBreaksWorkflows",
        "Failure",
        "InvalidRequest",
        "NotFound",
        "RunCancelled",
        "RunFailed",
        "RunNotSucceeded",
        "StepFailed",
        "Unavailable",
        "Violation",
        "WaitTimeout",
    ),
    "policies": ("ApprovalRule", "Delivery", "Retry", "branch", "fallback"),
    "payloads": ("OutputTypeError",),
    "references": ("default", "expr", "expression"),
    "runs": ("RunHandle",),
    "schedules": ("Backfilled", "Overlap", "schedule"),
    "worker": ("Worker",),
    "steps": ("CallStep", "EntriesOutput", "MapOutput", "Step"),
    "workflows": ("Workflow", "workflow"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'baton' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"baton.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
