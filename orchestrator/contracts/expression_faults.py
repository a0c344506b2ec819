"""What is wrong with an expression that the CEL library refuses, told in our own words with the name that was meant.

The library's text says where and what; the tree, the types and the names of the workflow say the cure. Nothing is
compiled here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.facts import ROOTS, bound_names, children, name_of
from orchestrator.contracts.local_names import PLACES, Locals
from orchestrator.contracts.paths import Names
from orchestrator.contracts.syntax import Call, Comprehension, Const, Node
from orchestrator.contracts.types import DURATION, TIMESTAMP
from orchestrator.contracts.violations import closest, closest_dotted, did_you_mean, hints_are_left, nearest

_ERROR_LINE = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*)")
_UNDECLARED = re.compile(r"undeclared reference to '([^']*)'")
_NO_OVERLOAD = re.compile(r"found no matching overload for '([^']*)' applied to '([^']*)'")
_NO_FIELD = re.compile(r"undefined field '([^']*)' not found in struct '([^']*)'")
_NO_OPERAND = re.compile(r"expression of type '([^']*)' cannot be the operand of a select operation")
_MISSING = re.compile(r"Syntax error: missing ('[^']+'|\w+) at")
_TOKEN = re.compile(r"\w+|[=!<>&|]+|.")

_KEYWORDS = ("in", "true", "false", "null")
_SPELLINGS = {"and": "&&", "or": "||", "not": "!", "=": "==", "AND": "&&", "OR": "||", "&": "&&", "|": "||"}
_LITERALS = {"True": "true", "False": "false", "None": "null", "nil": "null", "NULL": "null", "TRUE": "true"}
# fmt: off
_FUNCTIONS = (
    "size", "int", "uint", "double", "string", "bytes", "bool", "timestamp", "duration", "dyn", "type", "has", "all",
    "exists", "exists_one", "map", "filter", "matches", "contains", "startsWith", "endsWith", "split", "join",
    "substring", "trim", "lowerAscii", "upperAscii", "charAt", "indexOf", "lastIndexOf", "getFullYear", "getMonth",
    "getDayOfMonth", "getDate", "getDayOfWeek", "getDayOfYear", "getHours", "getMinutes", "getSeconds",
    "getMilliseconds", "optional.of", "optional.none", "optional.ofNonZeroValue", "hasValue", "value", "orValue",
    "or", "optMap", "optFlatMap", "math.greatest", "math.least", "math.ceil", "math.floor", "math.round",
    "math.trunc", "math.abs", "math.sign", "math.isNaN", "math.isInf", "math.isFinite", "math.sqrt",
)
# fmt: on
_METHODS = frozenset(name.rpartition(".")[2] for name in _FUNCTIONS)
_START = "; names start with `input`, `steps` or a package"


def syntax_fault(text: str, source: str) -> str:
    """Returns what is wrong with an expression that cannot be parsed; `text` is the library's."""
    if not source.strip():
        return "the expression is empty"
    found = _ERROR_LINE.findall(text)
    if not found:
        return "the expression cannot be read"
    line, column, message = int(found[0][0]), int(found[0][1]), found[0][2]
    if not message.startswith("Syntax error"):
        return f"line {line}, column {column}: {_cleaned(message)}"
    lines = source.splitlines()
    text_of_line = lines[line - 1] if line <= len(lines) else ""
    before, rest = text_of_line[: column - 1].rstrip(), text_of_line[column - 1 :].lstrip(". \t")
    token = _TOKEN.match(rest)
    near = token.group() if token is not None else ""
    where = "at its end" if not near and line >= len(lines) else f"at {_place(line, column, len(lines))}"
    head = f"the expression cannot be read {where}" + (f" near `{near[:40]}`" if near else "")
    missing = _MISSING.match(message)
    if near in _KEYWORDS and (before.endswith(".") or text_of_line[column - 1 : column] == "."):
        return f"{head}: `{near}` is a word of CEL; write the field in backticks, .`{near}`, or use a path"
    if near in _SPELLINGS:
        return f"{head}: write `{_SPELLINGS[near]}`"
    if near in ("'", '"'):
        return f"{head}: the string that starts there does not end"
    if missing is not None and missing.group(1).startswith("'"):
        return f"{head}: a `{missing.group(1)[1:-1]}` is missing"
    return f"{head}: something is missing" if not near else f"{head}: this is not expected there"


def _place(line: int, column: int, lines: int) -> str:
    return f"line {line}, column {column}" if lines > 1 else f"column {column}"


def type_fault(text: str, root: Node, names: Names, types: TypePool, visible: Locals) -> str:
    """Returns what is wrong with an expression that can be parsed but does not pass the checks of types.

    `visible` are the local names that it can read.
    """
    found = _ERROR_LINE.findall(text)
    if not found:
        return "the expression cannot be read"
    line, column, message = found[0]
    if unknown := _unknown_constant(root, types):
        return unknown
    return f"line {line}, column {int(column)}: {_explained(message, root, names, types, visible)}"


def _explained(message: str, root: Node, names: Names, types: TypePool, visible: Locals) -> str:
    if found := _UNDECLARED.search(message):
        return _undeclared(found.group(1), root, names, types, visible)
    if found := _NO_FIELD.search(message):
        descriptor = types.find_message(found.group(2))
        hint = closest(found.group(1), descriptor.fields_by_name) if descriptor is not None else ""
        return f"{found.group(2)} has no field `{found.group(1)}`{hint}"
    if found := _NO_OPERAND.search(message):
        return _without_fields(found.group(1))
    message = _cleaned(message)
    if found := _NO_OVERLOAD.search(message):
        return message + _overload_hint(found.group(1), found.group(2), root, types)
    return message


def _without_fields(name: str) -> str:
    if name.startswith("wrapper("):
        return f"a wrapper is its value, {name[8:-1]} or null, and has no fields; leave out what comes after it"
    hint = "; a path reads its parts" if name in (TIMESTAMP, DURATION) else ""
    return f"a value of type {name} has no fields in an expression{hint}"


def _overload_hint(function: str, applied: str, root: Node, types: TypePool) -> str:
    if "double" in applied and "int" in applied:
        return "; write a whole number as a double, such as 1.0"
    if function in ("_==_", "_!=_") and applied in ("(int, string)", "(string, int)"):
        for node in _nodes(root):
            if isinstance(node, Const) and isinstance(node.value, str) and types.constants_called(node.value):
                return f"; compare an enum with a constant such as {types.constants_called(node.value)[0]}"
        return "; convert the number with string(), or the string with int()"
    if "uint" in applied and "int" in applied.replace("uint", ""):
        return "; convert one of them with int() or uint(), or write 1u for a number"
    if function == "_[_]" and applied.endswith(", string)") and types.find_message(applied[1:].partition(",")[0]):
        return "; a field of a message is read with a dot"
    if function == "_+_" and "string" in applied:
        return "; convert the other with string()"
    return ""


def _unknown_constant(root: Node, types: TypePool) -> str:
    """Returns what is wrong with the first dotted name that goes on after the name of an enum or a message."""
    for parts in free_names(root):
        for length in range(len(parts) - 1, 0, -1):
            holder, wanted = ".".join(parts[:length]), parts[length]
            values = types.enum_values(holder)
            if values is not None:
                if wanted in values:
                    break
                near = nearest(wanted, {one: f"{holder}.{one}" for one in values})
                listed = ", ".join(values[:8]) + (", …" if len(values) > 8 else "")
                return f"the enum {holder} has no value `{wanted}`{did_you_mean(near) or f'; it has {listed}'}"
            message = types.find_message(holder)
            if message is not None:
                inner = [one.name for one in (*message.enum_types, *message.nested_types)]
                if wanted in inner:
                    break
                return f"the message {holder} has no enum or message `{wanted}`{closest(wanted, inner)}"
    return ""


def _undeclared(name: str, root: Node, names: Names, types: TypePool, visible: Locals) -> str:
    functions = dict(_called(root))
    if name in functions:
        path = functions[name]
        if path in _FUNCTIONS:
            return f"the function `{path}` is not called in this way"
        return f"there is no function `{path}`{closest_dotted(path, _FUNCTIONS)}"
    if name.partition(".")[0] in PLACES and name.partition(".")[0] not in names.steps:
        return f"there is no `{name}` here: it is there only in {PLACES[name.partition('.')[0]]}"
    hint = _meant(name, root, names, types, visible)
    for function in () if hint else functions:
        if function[0].isalpha() and function not in _METHODS and (near := closest(function, _METHODS)):
            return f"there is no function `{function}`{near}"
    return f"there is no `{name}` here{hint or _START}"


def _meant(name: str, root: Node, names: Names, types: TypePool, visible: Locals) -> str:
    if not hints_are_left():
        return ""
    first, _, rest = name.partition(".")
    behind = f".{rest}" if rest else ""
    if name in _LITERALS:
        return did_you_mean(_LITERALS[name])
    if first in names.steps:
        return did_you_mean(f"steps.{name}") if rest else f"; did you mean `steps.{name}.output`?"
    constants = types.constants_called(name.rpartition(".")[2])
    for constant in constants:
        if constant.endswith(f".{name}") or len(constants) == 1:
            return did_you_mean(constant)
    fields = names.input_type.fields_by_name if names.input_type is not None else {}
    if first in fields:
        return did_you_mean(f"input.{name}")
    if near := nearest(first, {one: one for one in (*ROOTS[:2], *visible, *bound_names(root))}):
        return did_you_mean(near + behind)
    if rest and (near := types.closest_constant(name)):
        return did_you_mean(near)
    near = nearest(first, {one: f"steps.{one}" for one in names.steps} | {one: f"input.{one}" for one in fields})
    if near:
        return did_you_mean(near + behind if behind or near.startswith("input.") else f"{near}.output")
    # By custom, names of messages start with a capital letter.
    return types.closest_message(name) if name.rpartition(".")[2][:1].isupper() else ""


def _called(root: Node) -> Iterator[tuple[str, str]]:
    """Yields for each call what the library may name as unknown, and the whole name of the function."""
    for node in _nodes(root):
        if not isinstance(node, Call):
            continue
        yield node.function, node.function
        target = name_of(node.target) if node.target is not None else None
        if target is not None and target.parts[0] in ("math", "optional", "strings"):
            yield ".".join(target.parts), ".".join((*target.parts, node.function))


def _nodes(node: Node) -> Iterator[Node]:
    pending = [node]
    while pending:
        one = pending.pop()
        yield one
        pending.extend(children(one))


def free_names(node: Node, bound: frozenset[str] = frozenset()) -> Iterator[tuple[str, ...]]:
    """Yields the parts of the dotted names that start neither from ROOTS nor from a loop variable."""
    name = name_of(node)
    if name is not None:
        if name.parts[0] not in ROOTS and name.parts[0] not in bound:
            yield name.parts
        return
    inner = bound | {*node.variables, node.accumulator} if isinstance(node, Comprehension) else bound
    for child in children(node):
        yield from free_names(child, inner)


def _cleaned(message: str) -> str:
    return message.replace(" (in container '')", "").replace(" [INVALID_ARGUMENT]", "")[:300]
