"""Whatever two contracts look like: where the new one is said to fit, bytes go over the wire without loss.

Types, what is used of them, and messages are random. The judge is protobuf itself: what one side writes is parsed by
the other, and what is used must be there as it was.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message_factory import GetMessageClass

from orchestrator.contracts.compatibility import incompatibilities, takes_the_place
from orchestrator.contracts.descriptors import Contract, build_pool, read_contract
from orchestrator.contracts.types import is_map
from orchestrator.contracts.uses import MethodUse, Part

GROUP, MESSAGE, ENUM = 10, FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM
SCALARS = [one for one in FieldDescriptorProto.Type.values() if one not in (GROUP, MESSAGE, ENUM)]
WHOLE = Part("p", whole=True)
NAMES = ("a", "b", "c", "d", "e")
ROUNDS = 400


def random_file(chance: random.Random) -> FileDescriptorProto:
    """A file with an enum and messages that hold one another."""
    syntax = chance.choice(["proto3", "proto2"])
    file = FileDescriptorProto(name="x.proto", package="x", syntax=syntax)
    enum = file.enum_type.add(name="Kind")
    enum.value.add(name="ZERO", number=0)
    numbers = chance.sample(range(1, 5), 3)
    for name, number in zip(chance.sample(["ONE", "TWO", "SIX", "TEN"], 3), numbers, strict=True):
        enum.value.add(name=name, number=number)
    for name in ("Root", "Leaf", "Other"):
        message = file.message_type.add(name=name)
        for number, field in enumerate(chance.sample(NAMES, chance.randint(2, 5)), 1):
            add_field(chance, message, field, number, deep=name == "Root")
    service = file.service.add(name="S")
    service.method.add(name="M", input_type=".x.Root", output_type=".x.Root")
    return file


def add_field(chance: random.Random, message: Any, name: str, number: int, *, deep: bool) -> None:
    field = message.field.add(name=name, number=number, label=chance.choice([1, 1, 3]))
    kind = chance.random()
    if deep and kind < 0.3:
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, chance.choice([".x.Leaf", ".x.Other"])
    elif deep and kind < 0.4:
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=1, type=FieldDescriptorProto.TYPE_STRING)
        entry.field.add(name="value", number=2, label=1, type=MESSAGE, type_name=".x.Leaf")
        field.label, field.type, field.type_name = 3, MESSAGE, f".x.Root.{name.capitalize()}Entry"
    elif kind < 0.5:
        field.type, field.type_name = FieldDescriptorProto.TYPE_ENUM, ".x.Kind"
    else:
        field.type = chance.choice(SCALARS)


def mutated(chance: random.Random, file: FileDescriptorProto) -> FileDescriptorProto:
    """The file with a few changes."""
    new = FileDescriptorProto()
    new.CopyFrom(file)
    for _ in range(chance.randint(1, 3)):
        message = chance.choice([one for one in new.message_type if one.field])
        field = chance.choice(message.field)
        change = chance.randrange(8)
        if change == 0:
            message.field.remove(field)
        elif change == 1:
            field.number = chance.choice([one for one in range(1, 40) if one not in {f.number for f in message.field}])
        elif change == 2 and field.type not in (MESSAGE, ENUM):
            field.type = chance.choice(SCALARS)
        elif change == 3 and field.type != MESSAGE:
            field.label = 4 - field.label if field.label in (1, 3) else 1
        elif change == 4:
            free = [name for name in "abcdefgh" if name not in {f.name for f in message.field}]
            field.name = field.name if field.type == MESSAGE and field.label == 3 else chance.choice(free)
        elif change == 5:
            value = chance.choice(new.enum_type[0].value[1:])
            value.number = chance.choice(
                [one for one in range(1, 9) if one not in {v.number for v in new.enum_type[0].value}]
            )
        elif change == 6:
            value = chance.choice(new.enum_type[0].value[1:])
            free = [
                name
                for name in ("ONE", "TWO", "SIX", "TEN", "ALL")
                if name not in {v.name for v in new.enum_type[0].value}
            ]
            value.name = chance.choice(free)
        elif change == 7:
            free = [name for name in "abcdefgh" if name not in {f.name for f in message.field}]
            number = chance.choice([one for one in range(1, 40) if one not in {f.number for f in message.field}])
            add_field(chance, message, chance.choice(free), number, deep=False)
    return new


def random_part(chance: random.Random, message: Descriptor, depth: int = 2) -> Part:
    """Some of a message."""
    part = Part("p")
    if chance.random() < 0.3:
        part.whole = True
        return part
    for field in message.fields:
        if chance.random() < 0.5:
            continue
        inner = field.message_type
        if inner is None or is_map(field) or depth == 0:
            part.fields[field.name] = [Part("p", whole=True)]
        else:
            part.fields[field.name] = [random_part(chance, inner, depth - 1)]
    return part


def fill(chance: random.Random, message: Any, part: Part | None) -> None:
    """Sets random fields of a message, of those in `part` alone if one is given."""
    for field in message.DESCRIPTOR.fields:
        inner = None if part is None or part.whole else part.fields.get(field.name)
        if chance.random() < 0.2 or (part is not None and not part.whole and inner is None):
            continue
        below = inner[0] if inner else None
        if is_map(field):
            for key in ("k", "l"):
                fill(chance, getattr(message, field.name)[key], None)
        elif field.message_type is not None:
            for one in (
                (getattr(message, field.name).add(), getattr(message, field.name).add())
                if field.is_repeated
                else (getattr(message, field.name),)
            ):
                if not field.is_repeated:
                    one.SetInParent()
                fill(chance, one, below)
        elif field.is_repeated:
            getattr(message, field.name).extend(random_value(chance, field) for _ in range(3))
        else:
            setattr(message, field.name, random_value(chance, field))


def random_value(chance: random.Random, field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return chance.choice(field.enum_type.values).number
    return {
        FieldDescriptor.CPPTYPE_INT32: lambda: chance.choice([0, -1, 7, -(2**31), 2**31 - 1]),
        FieldDescriptor.CPPTYPE_INT64: lambda: chance.choice([0, -1, 7, -(2**63), 2**63 - 1, 2**40]),
        FieldDescriptor.CPPTYPE_UINT32: lambda: chance.choice([0, 7, 2**32 - 1]),
        FieldDescriptor.CPPTYPE_UINT64: lambda: chance.choice([0, 7, 2**64 - 1, 2**40]),
        FieldDescriptor.CPPTYPE_DOUBLE: lambda: chance.choice([0.0, 1.5, -2.25]),
        FieldDescriptor.CPPTYPE_FLOAT: lambda: chance.choice([0.0, 1.5, -2.25]),
        FieldDescriptor.CPPTYPE_BOOL: lambda: chance.choice([True, False]),
        FieldDescriptor.CPPTYPE_STRING: lambda: (
            chance.choice([b"", b"\xff\xfe", b"\x08\x01", b"text"])
            if field.type == FieldDescriptor.TYPE_BYTES
            else chance.choice(["", "text", "é"])
        ),
    }[field.cpp_type]()


def meaning(message: Any, part: Part, old: Descriptor) -> Any:
    """What a reader that uses `part` sees of what the old contract knows: values by name, enum values by theirs."""
    seen = {}
    for field in old.fields:
        if not part.whole and field.name not in part.fields:
            continue
        below = WHOLE if part.whole else part.fields[field.name][0]
        own, value = message.DESCRIPTOR.fields_by_name[field.name], getattr(message, field.name)
        if is_map(field):
            inner = field.message_type.fields_by_name["value"].message_type
            seen[field.name] = {key: meaning(value[key], WHOLE, inner) for key in value}
        elif field.is_repeated:
            seen[field.name] = [single(field, own, one, below) for one in value]
        elif not field.has_presence or message.HasField(field.name):
            seen[field.name] = single(field, own, value, below)
    return seen


def single(field: FieldDescriptor, own: FieldDescriptor, value: Any, part: Part) -> Any:
    if field.message_type is not None:
        return meaning(value, part, field.message_type)
    if field.enum_type is not None:
        known = own.enum_type.values_by_number.get(value)
        return known.name if known is not None and known.name in field.enum_type.values_by_name else value
    return value


def root(contract: Contract) -> Descriptor:
    found: Descriptor = build_pool(FileDescriptorSet.FromString(contract.files).file).FindMessageTypeByName("x.Root")
    return found


@pytest.mark.parametrize("sent", [True, False], ids=["requests", "responses"])
@pytest.mark.parametrize("seed", range(8))
def test_what_fits_goes_over_the_wire_without_loss(seed: int, sent: bool) -> None:
    chance = random.Random(seed)
    fitting = 0
    for _ in range(ROUNDS):
        file = random_file(chance)
        old, new = read_contract([file]), read_contract([mutated(chance, file)])
        before, after = root(old), root(new)
        used = random_part(chance, before)
        nothing = Part("p")
        use = MethodUse("p", "x.S/M", before, before, False, used if sent else nothing, () if sent else (used,))
        found = incompatibilities(use, new)
        assert not found or not takes_the_place(new, old, "x.S/M"), found
        if found:
            continue
        fitting += 1
        writer, reader = GetMessageClass(before if sent else after), GetMessageClass(after if sent else before)
        for _ in range(5):
            message = writer()
            fill(chance, message, used if sent else None)
            received = reader.FromString(message.SerializeToString())
            assert meaning(received, used, before) == meaning(message, used, before), message
    assert fitting > ROUNDS / 20
