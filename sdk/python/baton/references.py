"""References: what a workflow function sees in place of messages that do not exist yet.

To the type checker a reference is the message or field it stands for; at run time it records the path that was read.
Turning references into bindings of the wire is in bindings.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from baton.errors import BindError, UnknownFieldError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

T = TypeVar("T")

_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*")

ABSENT: Any = object()
"""Stands for a default that was not given."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a reference reads from.

    `text` is a path, or a CEL expression where `computed`. `descriptor` is the message it leads to, for a single
    message; `field` the field it ends with. Both are None where the type is not known here. `default` is the value to
    use where the step that is read did not succeed. `element` says that it is one element of a repeated field.
    """

    text: str
    computed: bool = False
    descriptor: Descriptor | None = None
    field: FieldDescriptor | None = None
    default: Any = ABSENT
    element: bool = False

    @property
    def repeated(self) -> bool:
        """Whether it leads to a list or map."""
        return self.field is not None and self.field.is_repeated and not self.element


def _refuse(action: str, cure: str) -> Callable[..., NoReturn]:
    def refuse(self: object, *_: object) -> NoReturn:
        raise BindError(
            f"{self!r} is a reference, not a value: it cannot be {action} while the workflow is written; {cure}"
        )

    return refuse


_CONDITION = (
    'give when=, expect= or until= what is to be decided during the run, cond("{} > 1", reference), as in '
    'until=lambda output: cond("{} > 1", output.score); or let a step decide'
)
_EXPRESSION = 'use expression(T, "…{}…", reference), which is computed during the run'
_BRACES = 'give it as an argument: cond("{} > 3", reference), expression(T, "{} + 1", reference)'


class Recorded:
    """Base of what is recorded rather than held: every use as a value is refused with its cure."""

    __slots__ = ()
    __hash__ = cast("Callable[[Any], int]", _refuse("hashed", _EXPRESSION))
    __bool__ = _refuse("tested", _CONDITION)
    __eq__ = __ne__ = cast("Any", _refuse("compared", _CONDITION))
    __lt__ = __le__ = __gt__ = __ge__ = _refuse("compared", _CONDITION)
    __contains__ = _refuse("searched", _CONDITION)
    __iter__ = _refuse("iterated over", _EXPRESSION)
    __len__ = _refuse("measured", _EXPRESSION)
    __getitem__ = _refuse("indexed", _EXPRESSION)
    __str__ = __format__ = cast("Any", _refuse("formatted", _BRACES))
    __bytes__ = __int__ = __float__ = __index__ = __complex__ = _refuse("converted", _EXPRESSION)
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse("computed with", _EXPRESSION)
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _refuse("computed with", _EXPRESSION)
    __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = _refuse("computed with", _EXPRESSION)
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = _refuse("combined", _CONDITION)
    __call__ = _refuse("called", _EXPRESSION)


class Reference(Recorded):
    """Records the path of a message or field that will exist during the run."""

    __slots__ = ("_baton_source",)
    _baton_source: Source

    def __init__(self, source: Source) -> None:
        object.__setattr__(self, "_baton_source", source)

    def __repr__(self) -> str:
        return f"<{self._baton_source.text}>"

    def __getattr__(self, name: str) -> Reference:
        if name.startswith("__"):
            raise AttributeError(name)
        source = self._baton_source
        if source.default is not ABSENT:
            raise BindError(f"{source.text}: take the field first, then its default: default(reference.{name}, …)")
        if source.descriptor is None:
            raise UnknownFieldError(_not_a_message(source, name))
        field = source.descriptor.fields_by_name.get(name)
        if field is None:
            raise UnknownFieldError(unknown_field(source.descriptor, name, f"{source.text}: "))
        descriptor = None if field.is_repeated else field.message_type
        text = f"{source.text}.{name}"
        return Reference(replace(source, text=text, descriptor=descriptor, field=field, element=False))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise BindError(f"{self!r} is a reference: {name!r} cannot be set; build a new message with bind(…)")


def source_of(value: object) -> Source | None:
    """Returns the source of a reference, None for anything else."""
    return value._baton_source if isinstance(value, Reference) else None


def fill(text: str, references: Iterable[object]) -> str:
    """Puts the paths of `references` into the `{}` of a CEL text, in order. Without references the text stays as it is.

    Raises BindError where their numbers differ or one is not a reference.
    """
    values = list(references)
    if not values:
        return text
    parts = text.split("{}")
    if len(parts) != len(values) + 1:
        raise BindError(f"{text!r} has {len(parts) - 1} places {{}} for {len(values)} references")
    filled = parts[0]
    for value, part in zip(values, parts[1:], strict=True):
        source = source_of(value)
        if source is None:
            raise BindError(f"{text!r}: {value!r} is not a reference; write constants into the expression")
        if source.default is not ABSENT:
            raise BindError(
                f"{text!r}: {source.text} has a default; inside an expression, test the step's state instead"
            )
        filled += (source.text if is_path(source.text) else f"({source.text})") + part
    return filled


def is_path(text: str) -> bool:
    """Tells whether a CEL text is a plain path, which needs no parentheses."""
    return _PATH.fullmatch(text) is not None


def expr(source: str, *references: object) -> Any:
    """Returns the value of a CEL expression over `input` and `steps`, of a type that the server alone checks.

    Each `{}` in `source` is replaced by the path of the next reference.
    """
    return Reference(Source(_checked(fill(source, references)), computed=True))


def expression(result: type[T], source: str, *references: object) -> T:
    """Returns the value of a CEL expression, for the type checker a `result`; the server checks the real type.

    Each `{}` in `source` is replaced by the path of the next reference: `expression(int, "{} * 2", wf.input.quantity)`.
    """
    descriptor = getattr(result, "DESCRIPTOR", None)
    return cast("T", Reference(Source(_checked(fill(source, references)), computed=True, descriptor=descriptor)))


def default(reference: T, value: T) -> T:
    """Returns `reference` with the constant to use where the step that it reads failed or was skipped."""
    source = source_of(reference)
    if source is None:
        raise BindError(f"default(…) takes a reference such as step.output.total first, not {reference!r}")
    if isinstance(value, Recorded):
        raise BindError(f"{source.text}: its default must be a constant, not {value!r}")
    return cast("T", Reference(replace(source, default=value)))


def key_text(key: object, where: str) -> str:
    """Returns the CEL text of a key; raises BindError, naming `where`, for anything but a reference or expression."""
    source = source_of(key)
    if source is None:
        raise BindError(f"{where}: a key is a reference or expr(…), which differs from run to run, not {key!r}")
    if source.default is not ABSENT:
        raise BindError(f"{where}: {source.text} has a default; use expr(…) with a test of the step's state instead")
    return source.text


def unknown_field(descriptor: Descriptor, name: str, where: str = "") -> str:
    """Returns the text for a field that a message does not have, with the closest one that it has."""
    names = [field.name for field in descriptor.fields]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        hint = f"did you mean {close[0]!r}?"
    elif names:
        hint = f"its fields are {', '.join(names)}"
    else:
        hint = "it has no fields"
    return f"{where}{descriptor.full_name} has no field {name!r}; {hint}"


def _checked(source: str) -> str:
    if not source.strip():
        raise BindError("the expression is empty")
    return source


def _not_a_message(source: Source, name: str) -> str:
    if source.field is None:
        return f"{source.text}: the fields of an expression are not known here; write .{name} into the expression"
    if source.repeated:
        return f'{source.text} is repeated; use expression(T, "{source.text}[0].{name}"), or let a step take the list'
    return f"{source.text} is not a message; it has no field {name!r}"
