"""Expressions: CEL, checked against the types of the workflow, bounded, and evaluated to plain values.

Only this module, `variables` and `cel_values` know the CEL library. Its run-time errors are values;
none of its texts reaches a caller when an expression runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from google.protobuf.message import Message

from orchestrator.contracts import cel_library as cel
from orchestrator.contracts import syntax
from orchestrator.contracts.cel_values import converter, enum_name, mismatch, plain
from orchestrator.contracts.cost import (
    GATHERED_ELEMENT_LIMIT,
    SOURCE_LIMIT_BYTES,
    Limits,
    TooCostly,
    check_shape,
    count_elements,
    read_limits,
)
from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.expression_faults import syntax_fault, type_fault
from orchestrator.contracts.facts import (
    ROOTS,
    bound_names,
    implied,
    misspelt_states,
    name_of,
    names_in,
    reads_of,
)
from orchestrator.contracts.local_names import PREVIOUS, Locals, locals_key
from orchestrator.contracts.paths import InvalidName, Names
from orchestrator.contracts.reads import Facts, Read
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.syntax import CelType, Node
from orchestrator.contracts.types import ValueType
from orchestrator.contracts.variables import (
    PRUNE_BYTES,
    UnknownType,
    Variable,
    VariableTable,
    prune,
)
from orchestrator.contracts.violations import EvaluationFailed
from orchestrator.contracts.wire import MalformedWire

_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*([.][A-Za-z_]\w*)+")
_RUN_TIME_FAULTS = (
    ("divide by zero", "it divides by zero"),
    ("modulus by zero", "it divides by zero"),
    ("overflow", "a number is out of range"),
    ("out of range", "a number or an index is out of range"),
    ("out of bounds", "an index is out of range"),
    ("index error", "an index is out of range"),
    ("not found in map", "a map has no such key"),
    ("no such key", "a map has no such key"),
    ("no matching overload", "a value has another type than the expression expects"),
    ("timestamp", "a value is no timestamp"),
    ("duration", "a value is no duration"),
    ("cannot convert", "a value cannot be converted"),
    ("conversion", "a value cannot be converted"),
)


class ExpressionFault(Exception):
    """An expression is wrong. `reads` are those found all the same, for the graph."""

    def __init__(self, reason: str, message: str, reads: tuple[Read, ...] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.reads = reads


@dataclass(slots=True)
class Expression:
    """A compiled expression.

    `complete` is false where a type that it reads is unknown, which is reported elsewhere: it cannot be evaluated.
    `when_true` is what is known of the steps' ends where it is true.
    """

    source: str
    reads: tuple[Read, ...]
    when_true: Facts
    complete: bool
    type: CelType = syntax.DYN
    enum: str = ""
    _program: Any = None
    _variables: tuple[Variable, ...] = ()
    _limits: Limits = field(default_factory=Limits)
    _types: TypePool | None = None

    @property
    def reads_previous(self) -> bool:
        """Tells whether the expression reads the output of the iteration before."""
        return any(variable.name.partition(".")[0] == PREVIOUS for variable in self._variables)

    @property
    def constant(self) -> bool:
        """Tells whether the expression reads nothing."""
        return self.complete and not self._variables

    def mismatch(self, target: ValueType) -> str | None:
        """Returns None where the value can go into `target`, else a hint at the cure, which may be ""."""
        return mismatch(target, self.type, self.enum)

    def evaluate(self, scope: Scope) -> Any:
        """Returns CEL's value of the expression. Raises EvaluationFailed."""
        data: dict[str, Any] = {}
        size = 0
        for variable in self._variables:
            if variable.step is not None and scope.outputs[variable.step] is None:
                continue
            value = variable.read(scope)
            if variable.message:
                length = value.ByteSize()
                if length > PRUNE_BYTES and variable.fields is not None:
                    value = prune(value, variable.fields)
                    length = value.ByteSize()
                size += length
            elif isinstance(value, str):
                size += len(value)
                if "\0" in value:
                    # The library would cut the string there without a word.
                    raise EvaluationFailed("a string that the expression reads holds the character NUL")
            elif isinstance(value, bytes):
                size += len(value)
                value = bytearray(value)  # bytes are cut at the first NUL, a bytearray is not
            data[variable.name] = value
        self._check_limits(data, size)
        try:
            result = self._program.eval(data=data)
        except RuntimeError:
            raise EvaluationFailed("the expression takes too many iterations: use a step for this") from None
        kind = result.type()
        if kind == cel.Type.ERROR:
            raise EvaluationFailed(_run_time_fault(str(result.value())))
        if kind == cel.Type.UNKNOWN:
            raise EvaluationFailed("the expression reads the output of a step that did not succeed")
        return result

    def _check_limits(self, data: Mapping[str, Any], size: int) -> None:
        limits = self._limits
        if size > limits.input_bytes:
            raise EvaluationFailed(
                f"the expression reads {size} bytes; the limit is {limits.input_bytes}: use a step for this"
            )
        for name, fields in limits.lists:
            if name in data and _length(data[name], fields) > GATHERED_ELEMENT_LIMIT:
                raise EvaluationFailed(
                    f"the expression goes through {name}.{'.'.join(fields)} with map or filter, which is longer than "
                    f"{GATHERED_ELEMENT_LIMIT}: use a step for this"
                )
        if limits.elements is not None:
            left = limits.elements
            for value in data.values():
                if isinstance(value, Message):
                    left -= count_elements(value, left)
            if left < 0:
                raise EvaluationFailed(
                    f"the expression reads more than {limits.elements} elements of lists: use a step for this"
                )

    def truth(self, scope: Scope) -> bool:
        """Evaluates a condition. Raises EvaluationFailed, also where the value is not a bool."""
        value = plain(self.evaluate(scope))
        if not isinstance(value, bool):
            raise EvaluationFailed("the condition is neither true nor false")
        return value

    def reader(self, target: ValueType) -> Callable[[Scope], Any]:
        """Returns what evaluates the expression to a value for `target`, or UNSET."""
        assert self._types is not None
        convert = converter(target, self._types, optional=self.type.kind == "optional")
        evaluate = self.evaluate
        return lambda scope: convert(evaluate(scope))


def _length(value: Any, fields: tuple[str, ...]) -> int:
    """Returns the length of the list below a variable, or that of the longest list where it is of dynamic type."""
    for name in fields:
        if not isinstance(value, Message) or name not in value.DESCRIPTOR.fields_by_name:
            break
        value = getattr(value, name)
    if isinstance(value, Message):
        return count_elements(value, GATHERED_ELEMENT_LIMIT)
    return len(value) if hasattr(value, "__len__") else 0


def _run_time_fault(text: str) -> str:
    lowered = text.lower()
    for part, meaning in _RUN_TIME_FAULTS:
        if part in lowered:
            return f"the expression failed: {meaning}"
    return "the expression failed on these values"


@dataclass(frozen=True, slots=True)
class Use:
    """One expression of a workflow: read by the step `reader` (None: the run's output), where `visible` can be read."""

    source: str
    reader: int | None
    visible: Locals = field(default_factory=dict)

    @property
    def environment(self) -> str:
        """Key of the environment that it is compiled in: a local name has one type in each."""
        return locals_key(self.visible)

    @property
    def roots(self) -> frozenset[str]:
        """Names that it can start from, and `output`, whose absence is told."""
        return frozenset({*ROOTS, *self.visible})


@dataclass(slots=True)
class _Environment:
    """Variables of many expressions; the environment of CEL is built once, since its first use takes milliseconds."""

    tested: set[str] = field(default_factory=set)
    types: dict[str, cel.Type] = field(default_factory=dict)
    env: Any = None


class ExpressionCompiler:
    """Compiles the expressions of one workflow."""

    def __init__(self, types: TypePool, names: Names) -> None:
        self._types = types
        self._names = names
        self._syntax: Any = None
        self._parsed: dict[str, Node | ExpressionFault] = {}
        self._environments: dict[str, _Environment] = {}

    @cached_property
    def _extensions(self) -> list[Any]:
        return cel.extensions()

    def prepare(self, uses: Iterable[Use]) -> None:
        """Declares the variables of all expressions that are going to be compiled. Faults are left to `compile`."""
        parsed = []
        for use in uses:
            try:
                root = self._parse(use.source)
            except ExpressionFault:
                continue
            parsed.append((use, root))
            tested = self._environment(use).tested
            tested.update(".".join(name.parts) for name in names_in(root, use.roots) if name.tested)
        for use, root in parsed:
            try:
                self._declare(use, root)
            except (InvalidName, UnknownType):
                continue

    def steps_named(self, source: str) -> Iterator[str]:
        """Yields the ids of the steps that an expression reads, known or not."""
        try:
            root = self._parse(source)
        except ExpressionFault:
            return
        for name in names_in(root, frozenset({"steps"})):
            if len(name.parts) > 1:
                yield name.parts[1]

    def plain_name(self, source: str) -> str | None:
        """Returns the name, such as `input.a.b`, where the expression is nothing else; else None."""
        try:
            name = name_of(self._parse(source))
        except ExpressionFault:
            # CEL reads no name with a keyword in it, such as `input.in`; a path does.
            text = source.strip()
            return text if _PLAIN_NAME.fullmatch(text) else None
        return None if name is None or name.tested else ".".join(name.parts)

    def tree(self, source: str) -> Node:
        """Returns the syntax tree of an expression. Raises ExpressionFault."""
        return self._parse(source)

    def compile(self, use: Use) -> Expression:
        """Compiles an expression that was prepared. Raises ExpressionFault."""
        root = self._parse(use.source)
        steps = self._names.steps
        reads = tuple(read for read in _unique(reads_of(root, steps)) if read.step != use.reader)
        when_true = implied(root, True, steps)
        try:
            variables = self._declare(use, root)
            program, checked = self._compile(use)
            limits = read_limits(checked.root, checked.types)
        except UnknownType:
            return Expression(use.source, reads, when_true, complete=False)
        except InvalidName as error:
            raise ExpressionFault(error.reason, error.message, reads) from None
        except TooCostly as error:
            raise ExpressionFault("EXPRESSION_TOO_COSTLY", str(error), reads) from None
        except (RuntimeError, MalformedWire, RecursionError) as error:
            message = type_fault(str(error), root, self._names, self._types, use.visible)
            raise ExpressionFault("INVALID_EXPRESSION", message, reads) from None
        return Expression(
            use.source,
            reads,
            when_true,
            complete=True,
            type=checked.type,
            enum=enum_name(checked, {variable.name: variable.enum for variable in variables}, self._types),
            _program=program,
            _variables=variables,
            _limits=limits,
            _types=self._types,
        )

    def _environment(self, use: Use) -> _Environment:
        return self._environments.setdefault(use.environment, _Environment())

    def _declare(self, use: Use, root: Node) -> tuple[Variable, ...]:
        environment = self._environment(use)
        table = VariableTable(self._types, self._names, use.reader, use.visible, environment.tested)
        self._check_names(root, table, use.roots)
        for variable in table.found.values():
            if variable.name not in environment.types:
                environment.types[variable.name] = variable.type
                environment.env = None
        return tuple(table.found.values())

    def _compile(self, use: Use) -> tuple[Any, syntax.Checked]:
        environment = self._environment(use)
        if environment.env is None:
            environment.env = cel.NewEnv(self._types.pool, variables=environment.types, extensions=self._extensions)
        program = environment.env.compile(use.source)
        checked = syntax.decode_checked(program.serialize())
        if checked.type.kind == "optional":
            # The library cannot hand over an optional; a list of at most one element says the same.
            program = environment.env.compile(f"[?({use.source}\n)]")
        return program, checked

    def _parse(self, source: str) -> Node:
        found = self._parsed.get(source)
        if found is None:
            try:
                found = self._parse_anew(source)
            except ExpressionFault as fault:
                found = fault
            self._parsed[source] = found
        if isinstance(found, ExpressionFault):
            raise found
        return found

    def _parse_anew(self, source: str) -> Node:
        size = len(source.encode("utf-8", "replace"))
        if size > SOURCE_LIMIT_BYTES:
            raise ExpressionFault(
                "EXPRESSION_TOO_COSTLY", f"the expression has {size} bytes; the limit is {SOURCE_LIMIT_BYTES}"
            )
        if self._syntax is None:
            self._syntax = cel.NewEnv(self._types.pool, variables={}, extensions=self._extensions)
        try:
            root = syntax.decode_parsed(self._syntax.compile(source, disable_check=True).serialize())
            check_shape(root)
        except TooCostly as error:
            raise ExpressionFault("EXPRESSION_TOO_COSTLY", str(error)) from None
        except (RuntimeError, MalformedWire, RecursionError, UnicodeError) as error:
            raise ExpressionFault("INVALID_EXPRESSION", syntax_fault(str(error), source)) from None
        return root

    def _check_names(self, root: Node, table: VariableTable, roots: frozenset[str]) -> None:
        for bound in bound_names(root):
            if bound in roots:
                raise InvalidName("INVALID_EXPRESSION", f"a loop variable cannot be called `{bound}`")
        for literal in misspelt_states(root):
            raise InvalidName(
                "INVALID_EXPRESSION",
                f"a step's state is 'SUCCEEDED', 'FAILED' or 'SKIPPED', never '{literal}'",
            )
        unknown = False
        for name in names_in(root, roots):
            try:
                table.add(name)
            except UnknownType:
                unknown = True
        if unknown:
            raise UnknownType


def _unique(reads: Iterable[Read]) -> tuple[Read, ...]:
    # Facts are dictionaries: reads are made unique by what they say.
    unique: dict[tuple[int, str, str, str], Read] = {}
    for read in reads:
        unique.setdefault((read.step, read.kind, read.text, repr(read.facts)), read)
    return tuple(unique.values())
