"""Makes a closed set of files of what a reflection service gave. Pure: no calls are made here.

Servers whose descriptors come from protoc need none of this. Others build them from the .proto text themselves: the
usual packages for Node give one file for each protobuf package, without imports, with relative type names, with map
entries called after their field, without marks on optional fields, and with google.protobuf as one file of its own.
Some leave out imports that hold nothing but options. All of this can be put right from the files themselves, and
nothing else is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

from orchestrator.contracts.descriptors import WELL_KNOWN_FILES


class NotRepairable(Exception):
    """The files do not make a closed set; the text says why and is fit for callers."""


def repair(given: Iterable[FileDescriptorProto]) -> list[FileDescriptorProto]:
    """Returns the files, put right in place, with the well-known files that they use, each after what it imports.

    Errors: NotRepairable where a type that is used is nowhere defined, or files import each other in a circle.
    """
    files = {file.name: file for file in given if not _replaces_well_known_files(file)}
    for file in files.values():
        _name_map_entries(file)
        _mark_optional_fields(file)
    home = {name: file.name for file in files.values() for name in _defined_types(file)}
    for name, well_known in _HOME_OF_WELL_KNOWN_TYPES.items():
        home.setdefault(name, well_known)
    for file in tuple(files.values()):
        used = _make_names_absolute(file, home)
        _mend_imports(file, files, {home[name] for name in used} - {file.name})
    _add_well_known_files(files)
    graph = {name: list(file.dependency) for name, file in files.items()}
    try:
        return [files[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError:
        raise NotRepairable("files import each other in a circle") from None


@dataclass(frozen=True, slots=True)
class _Scope:
    """A message with its full name (with a leading dot), or the file's top level with its package."""

    name: str
    fields: Iterable[FieldDescriptorProto]


def _messages(scope: str, messages: Iterable[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    """Yields each message, nested ones included, with its full name."""
    for message in messages:
        name = f"{scope}.{message.name}"
        yield name, message
        yield from _messages(name, message.nested_type)


def _package_scope(file: FileDescriptorProto) -> str:
    return f".{file.package}" if file.package else ""


def _defined_types(file: FileDescriptorProto) -> Iterator[str]:
    package = _package_scope(file)
    for name, message in _messages(package, file.message_type):
        yield name
        for enum in message.enum_type:
            yield f"{name}.{enum.name}"
    for enum in file.enum_type:
        yield f"{package}.{enum.name}"


def _replaces_well_known_files(file: FileDescriptorProto) -> bool:
    """Tells whether a file holds, under a name of its own, what are well-known files elsewhere."""
    return (
        file.package == "google.protobuf"
        and file.name not in WELL_KNOWN_FILES
        and all(f".google.protobuf.{message.name}" in _HOME_OF_WELL_KNOWN_TYPES for message in file.message_type)
        and not file.service
    )


def _name_map_entries(file: FileDescriptorProto) -> None:
    """Gives the entry of a map the name that protobuf asks for: ByNameEntry for the field by_name."""
    for name, message in _messages(_package_scope(file), file.message_type):
        entries = {entry.name: entry for entry in message.nested_type if entry.options.map_entry}
        for field in message.field:
            entry = entries.get(field.type_name.rpartition(".")[2])
            if entry is None or field.type_name not in (entry.name, f"{name}.{entry.name}"):
                continue
            wanted = "".join(part[:1].upper() + part[1:] for part in field.name.split("_")) + "Entry"
            if entry.name != wanted:
                entry.name = wanted
                field.type_name = f"{name}.{wanted}"


def _mark_optional_fields(file: FileDescriptorProto) -> None:
    """Marks fields declared `optional` in proto3, of which only the oneof called after the field tells."""
    if file.syntax != "proto3":
        return
    for _, message in _messages(_package_scope(file), file.message_type):
        members: dict[int, list[FieldDescriptorProto]] = {}
        for field in message.field:
            if field.HasField("oneof_index"):
                members.setdefault(field.oneof_index, []).append(field)
        synthetic = {
            index
            for index, fields in members.items()
            if len(fields) == 1
            and index < len(message.oneof_decl)
            and message.oneof_decl[index].name == f"_{fields[0].name}"
        }
        # Protobuf asks for the oneofs that were written first, and those that stand for `optional` after them.
        order = sorted(range(len(message.oneof_decl)), key=lambda index: index in synthetic)
        declarations = [message.oneof_decl[index] for index in order]
        del message.oneof_decl[:]
        message.oneof_decl.extend(declarations)
        for index, fields in members.items():
            for field in fields:
                field.proto3_optional = field.proto3_optional or index in synthetic
                if index in order:
                    field.oneof_index = order.index(index)


def _make_names_absolute(file: FileDescriptorProto, home: Mapping[str, str]) -> set[str]:
    """Writes the name of every type that the file uses in full, and returns these names."""
    used: set[str] = set()

    def resolve(name: str, scope: str) -> str:
        found = _find(name, scope, home)
        if found is None:
            raise NotRepairable(f"{file.name} uses {name.lstrip('.')}, which none of the files defines")
        used.add(found)
        return found

    package = _package_scope(file)
    scopes = [_Scope(package, file.extension)]
    for name, message in _messages(package, file.message_type):
        scopes += [_Scope(name, message.field), _Scope(name, message.extension)]
    for scope in scopes:
        for field in scope.fields:
            if field.type_name:
                field.type_name = resolve(field.type_name, scope.name)
            if field.extendee:
                field.extendee = resolve(field.extendee, scope.name)
    for service in file.service:
        for method in service.method:
            method.input_type = resolve(method.input_type, package)
            method.output_type = resolve(method.output_type, package)
    return used


def _find(name: str, scope: str, home: Mapping[str, str]) -> str | None:
    """Returns the full name that `name` has when it is read in `scope`: the innermost definition wins."""
    if name.startswith("."):
        return name if name in home else None
    while True:
        candidate = f"{scope}.{name}"
        if candidate in home:
            return candidate
        if not scope:
            return None
        scope = scope.rpartition(".")[0]


def _mend_imports(file: FileDescriptorProto, files: Mapping[str, FileDescriptorProto], needed: set[str]) -> None:
    """Takes away imports that are not there, and adds those of types that are used but not imported."""
    kept = [index for index, name in enumerate(file.dependency) if name in files or name in WELL_KNOWN_FILES]
    if len(kept) < len(file.dependency):
        position = {old: new for new, old in enumerate(kept)}
        names = [file.dependency[index] for index in kept]
        public = [position[index] for index in file.public_dependency if index in position]
        weak = [position[index] for index in file.weak_dependency if index in position]
        file.dependency[:] = names
        file.public_dependency[:] = public
        file.weak_dependency[:] = weak
    file.dependency.extend(sorted(needed - _visible(file, files)))


def _visible(file: FileDescriptorProto, files: Mapping[str, FileDescriptorProto]) -> set[str]:
    """Returns the files whose types `file` may use: its imports, and what these import publicly."""
    visible: set[str] = set()
    pending = list(file.dependency)
    while pending:
        name = pending.pop()
        if name not in visible:
            visible.add(name)
            imported = files.get(name)
            if imported is not None:
                pending.extend(
                    imported.dependency[index]
                    for index in imported.public_dependency
                    if index < len(imported.dependency)
                )
    return visible


def _add_well_known_files(files: dict[str, FileDescriptorProto]) -> None:
    pending = [name for file in files.values() for name in file.dependency]
    while pending:
        name = pending.pop()
        if name not in files:
            files[name] = FileDescriptorProto()
            files[name].CopyFrom(WELL_KNOWN_FILES[name])
            pending.extend(files[name].dependency)


_HOME_OF_WELL_KNOWN_TYPES: dict[str, str] = {
    name: file_name for file_name, file in WELL_KNOWN_FILES.items() for name in _defined_types(file)
}
