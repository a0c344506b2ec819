"""The layer that checks requests against the rules written in the protos, and nothing more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from baton.v1.run_service_pb2 import SubmitRunRequest
from google.protobuf.message import Message
from protovalidate import EvaluationError, Validator

from orchestrator.domain.errors import FieldFault, InvalidRequest
from orchestrator.rpc.glance import is_plain_submission
from orchestrator.rpc.layers import Call

FAULT_LIMIT = 100
"""Faults that are told of one request."""


class RequestValidator:
    """Checks messages by their protovalidate rules. One instance serves all calls: it keeps the compiled rules."""

    def __init__(self, request_types: Iterable[type[Message]]) -> None:
        """Compiles the rules of `request_types` now, so that no call waits for it."""
        self._validator = Validator()
        for request_type in request_types:
            self._validator.collect_violations(request_type())

    def faults(self, message: Message) -> list[FieldFault]:
        """Returns what is wrong with `message`, at most FAULT_LIMIT faults; empty where it is valid."""
        if isinstance(message, SubmitRunRequest) and is_plain_submission(message):
            return []
        try:
            violations = self._validator.collect_violations(message)
        except EvaluationError:
            return [FieldFault("", "INVALID_REQUEST", "a rule of this message could not be computed on its values")]
        return [_fault(violation.proto) for violation in violations[:FAULT_LIMIT]]

    def check(self, message: Message) -> None:
        """Raises InvalidRequest with every fault of `message`."""
        faults = self.faults(message)
        if faults:
            raise invalid_request(faults)


class ValidationLayer:
    """Refuses requests with faults, but those of `exempt_methods`, which tell of faults in their own way."""

    def __init__(self, validator: RequestValidator, exempt_methods: frozenset[str]) -> None:
        self._validator = validator
        self._exempt_methods = exempt_methods

    def enter(self, call: Call) -> None:
        """Checks the request before it is served."""
        if call.request is not None and call.method not in self._exempt_methods:
            self._validator.check(call.request)


def invalid_request(faults: Sequence[FieldFault]) -> InvalidRequest:
    """Makes the error of a request with `faults`; its message is the first of them."""
    first = faults[0]
    text = f"{first.path}: {first.message}" if first.path else first.message
    if len(faults) > 1:
        text += f" (and {len(faults) - 1} more)"
    return InvalidRequest(text, faults=faults)


def _fault(violation: Any) -> FieldFault:
    path = _path(violation.field.elements) if violation.field else ""
    message = str(violation.message) or str(violation.rule_id)
    if violation.for_key:
        message = f"in the key, {message}"
    return FieldFault(path, "INVALID_REQUEST", message)


def _path(elements: Iterable[Any]) -> str:
    """Renders a field path as in `steps[2].request["amount"]`."""
    parts = []
    for element in elements:
        text = str(element.field_name)
        if element.subscript is not None:
            value = element.subscript.value
            text += f"[{_quoted(value) if isinstance(value, str) else str(value).lower()}]"
        parts.append(text)
    return ".".join(parts)


def _quoted(key: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", key) + '"'
