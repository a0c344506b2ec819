"""Conditions for `when` and `expect`: CEL texts of type bool that are put together, never tested, in Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from google.protobuf.descriptor import FieldDescriptor

from baton.errors import BindError
from baton.references import fill, is_path, source_of


@dataclass(frozen=True, slots=True)
class Condition:
    """A CEL expression of type bool; combine conditions with `&`, `|` and `~`."""

    source: str

    def __and__(self, other: Condition) -> Condition:
        return Condition(f"{_operand(self)} && {_operand(other)}")

    def __or__(self, other: Condition) -> Condition:
        return Condition(f"{_operand(self)} || {_operand(other)}")

    def __invert__(self) -> Condition:
        return Condition(f"!{_operand(self)}")

    def __bool__(self) -> NoReturn:
        raise BindError(
            f"the condition {self.source!r} is decided during the run, not here; give it as when= or expect=, and "
            "combine conditions with &, | and ~ instead of and, or and not"
        )


When: TypeAlias = Condition | str | bool
"""A condition, a CEL text, or a reference to a field of type bool."""


def cond(source: str, *references: object) -> Condition:
    """Returns the condition of a CEL text over `input` and `steps` (and `output` in expect).

    Each `{}` in `source` is replaced by the path of the next reference: `cond("{} > 100", wf.input.quantity)`.
    """
    return Condition(_checked(fill(source, references)))


def condition_text(condition: When, where: str) -> str:
    """Returns the CEL text of a condition; raises BindError, naming `where`, for anything else."""
    if isinstance(condition, Condition):
        return condition.source
    source = source_of(condition)
    if source is not None:
        if source.field is not None and source.field.type != FieldDescriptor.TYPE_BOOL:
            raise BindError(f'{where} takes a bool; {source.text} is not one: use cond("{{}} …", reference)')
        return source.text
    if isinstance(condition, str):
        return _checked(condition)
    raise BindError(f"{where} takes a condition for the run, not the plain {condition!r}")


def _operand(condition: Condition) -> str:
    return condition.source if is_path(condition.source) else f"({condition.source})"


def _checked(source: str) -> str:
    if not source.strip():
        raise BindError("the condition is empty")
    return source
