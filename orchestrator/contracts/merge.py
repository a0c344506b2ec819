"""Merging the contracts of several workers into one pool of types.

Types are told apart by their full names. A file that several workers bring is taken once. Where its content differs,
the larger one is taken if it is a compatible superset of the other: everything that both define is the same on the
wire, and what it adds is not required. A file whose types stand in several files already keeps only what is new in it
and imports the others. Files that share nothing but their name live side by side, one of them under another name.
Anything else is a conflict that names both. Options that mean nothing for bindings (a Java package, a deprecation) do
not matter, and no comparison looks at the order of declarations.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baton.v1 import failure_pb2
from google.protobuf import any_pb2, duration_pb2, empty_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from google.rpc import code_pb2

from orchestrator.contracts.descriptors import (
    WELL_KNOWN_FILES,
    Contract,
    InvalidContract,
    TypePool,
    order_files,
)
from orchestrator.contracts.required import declared_required

OWN_TYPES = "the workflow's types"
"""Name of the workflow's own descriptors in conflicts."""

_BATON = "Baton itself"

_ONLY_ONE = "only one has the"


class ContractConflict(Exception):
    """Two contracts define the same file or type differently; the text names both and is fit for callers.

    `second` is the worker that was merged into what was there before.
    """

    def __init__(self, message: str, second: str) -> None:
        super().__init__(message)
        self.second = second


@dataclass(slots=True)
class _Taken:
    owner: str
    file: FileDescriptorProto


def merge(
    parts: Sequence[tuple[str, Contract]],
    own_types: FileDescriptorSet | None = None,
    more: Sequence[tuple[str, Iterable[FileDescriptorProto]]] = (),
) -> TypePool:
    """Returns the pool of the types of all `parts` (worker name, contract), of `more` files (owner, files), of a
    workflow's own types and of failures.

    Raises ContractConflict where two of them cannot live together, InvalidContract where `own_types` is not valid.
    """
    files: dict[str, _Taken] = {}
    sources: list[tuple[str, Iterable[FileDescriptorProto]]] = [
        (name, FileDescriptorSet.FromString(contract.files).file) for name, contract in parts
    ]
    sources += more
    if own_types is not None:
        sources.append((OWN_TYPES, own_types.file))
    sources.append((_BATON, _baton_files()))
    symbols: dict[str, str] = {}
    for owner, brought in sources:
        renamed: dict[str, str] = {}
        for file in _normalized(brought, renamed):
            _take(owner, file, files, symbols, renamed)
    try:
        return TypePool(order_files({name: taken.file for name, taken in files.items()}))
    except InvalidContract as error:
        if error.clash is None:
            raise
        owners = {files[name].owner for name in (error.clash.first_file, error.clash.second_file) if name in files}
        named = [owner for owner, _ in sources if owner in owners]
        text = f"{' and '.join(named)} cannot live together: they define {error.clash.text}; {error.clash.cure}"
        callers = [owner for owner in named if owner != _BATON]
        raise ContractConflict(text, callers[-1] if callers else OWN_TYPES) from error


def _baton_files() -> list[FileDescriptorProto]:
    modules: tuple[Any, ...] = (any_pb2, duration_pb2, empty_pb2, timestamp_pb2, code_pb2, failure_pb2)
    return [FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in modules]


def _normalized(brought: Iterable[FileDescriptorProto], renamed: dict[str, str]) -> Iterable[FileDescriptorProto]:
    for original in brought:
        file = FileDescriptorProto()
        file.CopyFrom(original)
        file.ClearField("source_code_info")
        _rename_imports(file, renamed)
        yield file


def _rename_imports(file: FileDescriptorProto, renamed: Mapping[str, str]) -> None:
    names = [renamed.get(imported, imported) for imported in file.dependency]
    kept = list(dict.fromkeys(names))
    public = {kept.index(names[index]) for index in file.public_dependency if index < len(names)}
    file.dependency[:] = kept
    file.public_dependency[:] = sorted(public)
    file.ClearField("weak_dependency")


def _take(
    owner: str,
    file: FileDescriptorProto,
    files: dict[str, _Taken],
    symbols: dict[str, str],
    renamed: dict[str, str],
) -> None:
    if file.name in WELL_KNOWN_FILES:
        # Every protobuf runtime brings its own edition of these; the messages in them are the same on the wire.
        files.setdefault(file.name, _Taken(owner, WELL_KNOWN_FILES[file.name]))
        return
    original = file.name
    homes = sorted({symbols[symbol] for symbol in _symbols(file) if symbol in symbols})
    if len(homes) == 1 and _are_one(owner, file, files, homes[0]):
        # The same types, perhaps under another file name: two builds that took different import roots.
        renamed[original] = homes[0]
    else:
        if homes:
            _keep_what_is_new(owner, file, files, symbols)
        file.name = renamed[original] = _free_name(original, files)
        files[file.name] = _Taken(owner, file)
    name = renamed[original]
    for symbol in _symbols(files[name].file):
        first = symbols.setdefault(symbol, name)
        if first != name:
            raise ContractConflict(
                f"{files[first].owner} and {owner} define `{symbol}` in different files, {first} and {original}",
                owner,
            )


def _are_one(owner: str, file: FileDescriptorProto, files: dict[str, _Taken], name: str) -> bool:
    """Tells whether the file `name` and `file` can be one, and then keeps the larger."""
    if not _compare(files[name].file, file):
        return True
    if name in file.dependency or _compare(file, files[name].file):
        return False
    larger = FileDescriptorProto()
    larger.CopyFrom(file)
    larger.name = name
    files[name] = _Taken(owner, larger)
    return True


def _keep_what_is_new(owner: str, file: FileDescriptorProto, files: dict[str, _Taken], symbols: dict[str, str]) -> None:
    """Takes out of `file` what other files define in the same way, and imports these publicly in its place."""
    homes = sorted({symbols[symbol] for symbol in _symbols(file) if symbol in symbols})
    for home in homes:
        known = files[home]
        shared = FileDescriptorProto()
        shared.CopyFrom(file)
        _keep_symbols(shared, {symbol for symbol in _symbols(file) if symbols.get(symbol) == home})
        if difference := _compare(known.file, shared):
            if _ONLY_ONE in difference:
                difference = _compare(shared, known.file) or difference
            raise ContractConflict(
                f"{known.owner} and {owner} define the file {file.name} differently ({difference}); "
                "give both workers the same version, or a version that only adds to the other",
                owner,
            )
    _keep_symbols(file, {symbol for symbol in _symbols(file) if symbol not in symbols})
    for home in homes:
        if home not in file.dependency:
            file.dependency.append(home)
        index = list(file.dependency).index(home)
        if index not in file.public_dependency:
            file.public_dependency.append(index)


def _keep_symbols(file: FileDescriptorProto, kept_symbols: Container[str]) -> None:
    prefix = f"{file.package}." if file.package else ""
    groups: tuple[Any, ...] = (file.message_type, file.enum_type, file.service, file.extension)
    for group in groups:
        kept = [one for one in group if prefix + one.name in kept_symbols]
        del group[:]
        group.extend(kept)


def _free_name(name: str, files: Mapping[str, _Taken]) -> str:
    """Returns `name`, or where another file has it, the first of `name` with a number that is free."""
    free, number = name, 2
    while free in files:
        free, number = f"{name}#{number}", number + 1
    return free


def _symbols(file: FileDescriptorProto) -> Iterable[str]:
    prefix = f"{file.package}." if file.package else ""
    groups: tuple[Any, ...] = (file.message_type, file.enum_type, file.service, file.extension)
    for group in groups:
        for one in group:
            yield prefix + one.name


def _compare(large: FileDescriptorProto, small: FileDescriptorProto) -> str:
    """Returns "" where `large` is a compatible superset of `small`, else what differs."""
    if large.package != small.package:
        return f"package {large.package} and {small.package}"
    if (large.syntax or "proto2", large.edition) != (
        small.syntax or "proto2",
        small.edition,
    ):
        return "another syntax"
    if large.options.features != small.options.features:
        return "other features"
    return (
        _each(large.message_type, small.message_type, "message", _compare_message)
        or _each(large.enum_type, small.enum_type, "enum", _compare_enum)
        or _each(large.service, small.service, "service", _compare_service)
        or _each(large.extension, small.extension, "extension", _compare_field)
    )


def _each(large: Iterable[Any], small: Iterable[Any], what: str, compare: Any) -> str:
    there = {one.name: one for one in large}
    for one in small:
        other = there.get(one.name)
        if other is None:
            return f"{_ONLY_ONE} {what} {one.name}"
        if difference := compare(other, one):
            return f"{one.name}: {difference}" if what != "field" else str(difference)
    return ""


def _compare_message(large: DescriptorProto, small: DescriptorProto) -> str:
    if large.options.map_entry != small.options.map_entry or large.options.features != small.options.features:
        return "other options"
    known = {field.name for field in small.field}
    for field in large.field:
        if field.name not in known and declared_required(field):
            return f"the field {field.name}, which only one has, is required"
    fields = _each(
        [_oneof_named(large, field) for field in large.field],
        [_oneof_named(small, field) for field in small.field],
        "field",
        _compare_named_field,
    )
    return (
        fields
        or _each(large.nested_type, small.nested_type, "message", _compare_message)
        or _each(large.enum_type, small.enum_type, "enum", _compare_enum)
        or _each(large.extension, small.extension, "extension", _compare_field)
    )


@dataclass(frozen=True, slots=True)
class _FieldInOneof:
    name: str
    oneof: str
    field: FieldDescriptorProto


def _oneof_named(message: DescriptorProto, field: FieldDescriptorProto) -> _FieldInOneof:
    in_oneof = field.HasField("oneof_index") and not field.proto3_optional
    return _FieldInOneof(
        field.name,
        message.oneof_decl[field.oneof_index].name if in_oneof else "",
        field,
    )


def _compare_named_field(large: _FieldInOneof, small: _FieldInOneof) -> str:
    if large.oneof != small.oneof:
        return f"the field {small.name} is in another oneof"
    return _compare_field(large.field, small.field)


def _compare_field(large: FieldDescriptorProto, small: FieldDescriptorProto) -> str:
    same = (
        large.number == small.number
        and large.type == small.type
        and large.label == small.label
        and large.type_name == small.type_name
        and large.extendee == small.extendee
        and large.default_value == small.default_value
        and _same_json_name(large, small)
        and large.proto3_optional == small.proto3_optional
        and large.options.packed == small.options.packed
        and large.options.features == small.options.features
        and declared_required(large) == declared_required(small)
    )
    return "" if same else f"the field {small.name}"


def _same_json_name(large: FieldDescriptorProto, small: FieldDescriptorProto) -> bool:
    """Tells whether the names in JSON are the same; descriptors that do not come from protoc may know none."""
    return not large.json_name or not small.json_name or large.json_name == small.json_name


def _compare_enum(large: EnumDescriptorProto, small: EnumDescriptorProto) -> str:
    if large.options.features != small.options.features or large.options.allow_alias != small.options.allow_alias:
        return "other options"
    numbers = {value.name: value.number for value in large.value}
    for value in small.value:
        if numbers.get(value.name) != value.number:
            return f"the value {value.name}"
    return ""


def _compare_service(large: ServiceDescriptorProto, small: ServiceDescriptorProto) -> str:
    methods = {method.name: method for method in large.method}
    for method in small.method:
        other = methods.get(method.name)
        if other is None:
            return f"{_ONLY_ONE} method {method.name}"
        shape = (
            method.input_type,
            method.output_type,
            method.client_streaming,
            method.server_streaming,
        )
        if shape != (
            other.input_type,
            other.output_type,
            other.client_streaming,
            other.server_streaming,
        ):
            return f"the method {method.name}"
        if method.options.idempotency_level != other.options.idempotency_level:
            return f"the idempotency_level of the method {method.name}"
    return ""


__all__ = ["OWN_TYPES", "ContractConflict", "InvalidContract", "merge"]
