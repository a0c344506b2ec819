"""What a delegated step calls: one method of one contract, with a request that comes as it is."""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.descriptor_pb2 import MethodOptions

from orchestrator.contracts.builders import Builder
from orchestrator.contracts.compiled import CompiledStep, CompiledTarget
from orchestrator.contracts.descriptors import Contract, TypePool
from orchestrator.contracts.merge import merge

_REPEATABLE = (MethodOptions.IDEMPOTENT, MethodOptions.NO_SIDE_EFFECTS)

POOLS_KEPT = 64
STEPS_KEPT = 1_024
"""Contracts and methods whose types are kept."""


@lru_cache(POOLS_KEPT)
def _types(contract: Contract) -> TypePool:
    return merge([("worker", contract)])


@lru_cache(STEPS_KEPT)
def delegated_step(contract: Contract, method: str) -> CompiledStep | None:
    """Returns the step that calls `package.Service/Method`; None where the contract has no such unary method."""
    types = _types(contract)
    found = types.find_method(method)
    if found is None or found.client_streaming or found.server_streaming:
        return None
    request_class, response_class = types.message_class(found.input_type), types.message_class(found.output_type)
    target = CompiledTarget(
        method,
        request_class,
        response_class,
        found.GetOptions().idempotency_level in _REPEATABLE,
        Builder(request_class, request_class()),
    )
    return CompiledStep(method, (target,), output_class=response_class)
