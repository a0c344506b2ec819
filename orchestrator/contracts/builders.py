"""Builders: what turns a scope into a message, put together by `bindings`. No name is resolved here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from orchestrator.contracts.paths import UNSET
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.violations import EvaluationFailed

Put = Callable[[Message, Scope], None]
"""Writes one field of a message from a scope."""


@dataclass(slots=True)
class Builder:
    """Builds messages of one type: a copy of the template, then every `put` in order."""

    message_class: type[Message]
    template: Message
    puts: list[Put] = field(default_factory=list)
    needs_initialized: bool = False

    def fill(self, message: Message, scope: Scope) -> None:
        """Writes the fields into an empty message of the type. Raises EvaluationFailed."""
        message.MergeFrom(self.template)
        for put in self.puts:
            put(message, scope)

    def build(self, scope: Scope) -> Message:
        """Returns a new message. Raises EvaluationFailed."""
        message = self.message_class()
        self.fill(message, scope)
        if self.needs_initialized and not message.IsInitialized():
            raise EvaluationFailed(f"a required field of {message.DESCRIPTOR.full_name} has no value")
        return message


@dataclass(frozen=True, slots=True)
class Default:
    """Value of a binding, in a message that holds nothing else, where one of `steps` gave no output; with `previous`,
    also where there is no iteration before."""

    holder: Message
    steps: tuple[int, ...]
    previous: bool = False


def read_put(read: Callable[[Scope], Any], assign: Callable[[Message, Any], None]) -> Put:
    """Returns what reads a value and writes it, unless it is UNSET."""

    def put(message: Message, scope: Scope) -> None:
        value = read(scope)
        if value is not UNSET:
            assign(message, value)

    return put


def with_default(put: Put, default: Default | None) -> Put:
    """Returns what writes the default where what `put` reads is missing."""
    if default is None:
        return put
    holder, steps, previous = default.holder, default.steps, default.previous

    def put_or_default(message: Message, scope: Scope) -> None:
        outputs = scope.outputs
        if (previous and scope.previous is None) or any(outputs[step] is None for step in steps):
            message.MergeFrom(holder)
        else:
            put(message, scope)

    return put_or_default


def all_of(puts: list[Put]) -> Put:
    """Returns what does all of these, in order."""

    def put(message: Message, scope: Scope) -> None:
        for one in puts:
            one(message, scope)

    return put
