"""Tells at a glance that a submission keeps the rules of its proto, which nearly every submission does.

The rule engine takes as long over a submission as over everything else that stands around the call. What a glance does
not take for valid is not wrong: the rule engine decides on it, and says what is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from baton.v1.run_service_pb2 import RunView, SubmitRunRequest


def is_plain_submission(request: SubmitRunRequest) -> bool:
    """Whether a submission surely keeps the rules of SubmitRunRequest.

    Fields that this does not know, added later or with rules of some length, make it False.
    """
    if not request.workflow:
        return False
    for field, value in request.ListFields():
        keeps_rules = _GLANCES.get(field.name)
        if keeps_rules is None or not keeps_rules(value):
            return False
    return True


def _at_most(characters: int) -> Callable[[str], bool]:
    return lambda text: len(text) <= characters


def _anything(_: object) -> bool:
    return True


_GLANCES: Mapping[str, Callable[[Any], bool]] = {
    "workflow": _at_most(63),
    "revision": _at_most(64),
    "input": _anything,
    "request_id": _at_most(128),
    "wait_timeout": lambda duration: 0 <= duration.seconds < 600 and 0 <= duration.nanos < 1_000_000_000,
    "workspace": _at_most(128),
    "run_timeout": lambda duration: 0 < duration.seconds < 1_000_000_000 and 0 <= duration.nanos < 1_000_000_000,
    "validate_only": _anything,
    "view": frozenset(RunView.values()).__contains__,
    "client_id": _at_most(64),
    "traceparent": _at_most(128),
    "priority": lambda priority: -100 <= priority <= 100,
}
