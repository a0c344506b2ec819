"""bind(…) and the bindings of the wire: how constants, references and nested messages become baton.v1.Binding."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar, cast

from google.protobuf import json_format, struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from baton.descriptors import descriptor_of
from baton.errors import BindError, UnknownFieldError
from baton.references import ABSENT, Recorded, Source, source_of, unknown_field
from baton.v1 import workflow_pb2

P = ParamSpec("P")
M = TypeVar("M", bound=Message)

Binding: TypeAlias = Annotated[M, "recorded"]
"""`Binding[OrderOutput]` in an annotation is an OrderOutput that is recorded, not held; to type checkers it is one."""

_ELEMENTS_LIMIT = 10_000


class Bound(Recorded):
    """A message that will be built field by field during the run; what bind(…) gives at run time."""

    __slots__ = ("_baton_descriptor", "_baton_fields")
    _baton_descriptor: Descriptor
    _baton_fields: Mapping[str, workflow_pb2.Binding]

    def __init__(self, descriptor: Descriptor, fields: Mapping[str, workflow_pb2.Binding]) -> None:
        self._baton_descriptor = descriptor
        self._baton_fields = fields

    def __repr__(self) -> str:
        return f"<bind({self._baton_descriptor.full_name})>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise BindError(f"{self!r} is built during the run; its field {name!r} cannot be read here")


@dataclass(frozen=True, slots=True)
class Whole:
    """A request or output: its fields one by one, or one binding that gives all of it."""

    fields: Mapping[str, workflow_pb2.Binding]
    whole: workflow_pb2.Binding | None = None

    def write_request(self, message: workflow_pb2.Step | workflow_pb2.Undo | workflow_pb2.Fallback) -> None:
        """Writes it as the request of what `message` calls."""
        for name, binding in self.fields.items():
            message.request[name].CopyFrom(binding)
        if self.whole is not None:
            message.whole_request.CopyFrom(self.whole)


def bind(message: Callable[P, M], /, *args: P.args, **fields: P.kwargs) -> M:
    """Builds a `message` during the run: each field from a reference, a constant, a nested bind(…), a list or a dict.

    To the type checker this is a call of the message's constructor. Fields given as None are left out. Raises BindError
    for a field that the message does not have or whose value does not fit.
    """
    descriptor = getattr(message, "DESCRIPTOR", None)
    if not isinstance(message, type) or not isinstance(descriptor, Descriptor):
        raise BindError(f"bind(…) takes a message class first, such as ChargeRequest, not {message!r}")
    if args:
        raise BindError(f"bind({descriptor.name}, …) takes the fields by name")
    owner = cast("type[Message]", message)
    bindings: dict[str, workflow_pb2.Binding] = {}
    for name, value in fields.items():
        field = descriptor.fields_by_name.get(name)
        if field is None:
            raise UnknownFieldError(unknown_field(descriptor, name))
        if value is not None:
            bindings[name] = _field(owner, field, value)
    _check_oneofs(descriptor, bindings)
    return cast("M", Bound(descriptor, bindings))


def whole(descriptor: Descriptor, value: object, where: str) -> Whole:
    """Returns the binding of a whole message of type `descriptor`; `where` names it in errors."""
    if isinstance(value, Bound):
        _check_message(value._baton_descriptor, descriptor, where)
        return Whole(value._baton_fields)
    source = source_of(value)
    if source is not None:
        if source.field is not None and source.descriptor is None:
            raise BindError(f"{where} takes {descriptor.full_name}, but {source.text} is {_source_shape(source)}")
        if source.descriptor is not None:
            _check_message(source.descriptor, descriptor, where)
        return Whole({}, _reference(source, lambda default: _message_json(default, descriptor, where)))
    if isinstance(value, Message):
        _check_message(descriptor_of(value), descriptor, where)
        return Whole({}, workflow_pb2.Binding(literal=_value(_message_json(value, descriptor, where))))
    raise BindError(f"{where} takes {descriptor.full_name}; give bind({descriptor.name}, …), not {reprlib.repr(value)}")


def items_of(value: object, where: str) -> tuple[workflow_pb2.Binding, Source, FieldDescriptor | None]:
    """Returns the binding of what a map goes over, a reference to one of its items, and the key of a map field."""
    source = source_of(value)
    if source is None or source.descriptor is not None or (source.field is not None and not source.repeated):
        raise BindError(f"{where} takes a reference to a repeated field or map field, or expr(…), not {value!r}")
    binding = _reference(source, lambda default: _empty(default, where))
    if source.field is None:
        return binding, Source("item"), None
    if _is_map(source.field):
        key, item = _entry(source.field)
        return binding, Source("item", descriptor=item.message_type, field=item), key
    return binding, Source("item", descriptor=source.field.message_type, field=source.field, element=True), None


def instant_or_span(descriptor: Descriptor, value: object, where: str) -> workflow_pb2.Binding:
    """Returns the binding of a google.protobuf.Duration or Timestamp that is built during the run, or constant."""
    bound = whole(descriptor, value, where)
    return bound.whole or workflow_pb2.Binding(message=workflow_pb2.MessageBinding(fields=bound.fields))


def type_of(value: object) -> Descriptor | None:
    """Returns the type of a whole message; None where it is not known here."""
    if isinstance(value, Bound):
        return value._baton_descriptor
    if isinstance(value, Message):
        return descriptor_of(value)
    source = source_of(value)
    return source.descriptor if source is not None else None


def shape(field: FieldDescriptor) -> str:
    """Returns the type of a field as it stands in a proto file."""
    if _is_map(field):
        key, value = _entry(field)
        return f"map<{shape(key)}, {shape(value)}>"
    named = field.message_type or field.enum_type
    name = named.full_name if named is not None else _TYPE_NAMES[field.type]
    return f"repeated {name}" if field.is_repeated else name


def _field(owner: type[Message], field: FieldDescriptor, value: object) -> workflow_pb2.Binding:
    where = f"{owner.DESCRIPTOR.full_name}.{field.name}"
    source = source_of(value)
    if source is not None:
        _check_source(source, field, where)
        return _reference(source, lambda default: _literal(owner, field, default))
    if isinstance(value, Bound):
        if field.is_repeated or field.message_type is None:
            raise BindError(f"{where} is {shape(field)}; {value!r} does not fit")
        _check_message(value._baton_descriptor, field.message_type, where)
        return workflow_pb2.Binding(message=workflow_pb2.MessageBinding(fields=value._baton_fields))
    if isinstance(value, Mapping) and _is_map(field) and any(map(_holds_recorded, value.values())):
        return _map(owner, field, value, where)
    if field.is_repeated and isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        elements = list(value)
        if any(map(_holds_recorded, elements)):
            return _list(owner, field, elements, where)
        value = elements
    return workflow_pb2.Binding(literal=_value(_literal(owner, field, value)))


def _list(owner: type[Message], field: FieldDescriptor, elements: list[Any], where: str) -> workflow_pb2.Binding:
    if len(elements) > _ELEMENTS_LIMIT:
        raise BindError(f"{where} is bound to {len(elements)} elements; at most {_ELEMENTS_LIMIT} are taken")
    bindings = [
        _element(field, element, f"{where}[{index}]", lambda constant: _literal(owner, field, [constant])[0])
        for index, element in enumerate(elements)
    ]
    return workflow_pb2.Binding(list=workflow_pb2.ListBinding(elements=bindings))


def _map(owner: type[Message], field: FieldDescriptor, entries: Mapping[Any, Any], where: str) -> workflow_pb2.Binding:
    key, value = _entry(field)
    if key.type != FieldDescriptor.TYPE_STRING:
        raise BindError(f"{where} is {shape(field)}; only maps with string keys can mix references and constants")
    bindings = {
        name: _element(value, entry, f"{where}[{name!r}]", lambda constant: _literal(owner, field, {"": constant})[""])
        for name, entry in entries.items()
    }
    return workflow_pb2.Binding(map=workflow_pb2.MapBinding(entries=bindings))


def _element(field: FieldDescriptor, element: Any, where: str, literal: Callable[[Any], Any]) -> workflow_pb2.Binding:
    source = source_of(element)
    if source is not None:
        _check_source(source, field, where, element=True)
        return _reference(source, literal)
    if isinstance(element, Bound):
        if field.message_type is None:
            raise BindError(f"{where} is {_element_shape(field)}; {element!r} does not fit")
        _check_message(element._baton_descriptor, field.message_type, where)
        return workflow_pb2.Binding(message=workflow_pb2.MessageBinding(fields=element._baton_fields))
    return workflow_pb2.Binding(literal=_value(literal(element)))


def _reference(source: Source, literal: Callable[[Any], Any]) -> workflow_pb2.Binding:
    binding = workflow_pb2.Binding()
    if source.computed:
        binding.expression = source.text
    else:
        binding.path = source.text
    if source.default is not ABSENT:
        binding.default_value.CopyFrom(_value(literal(source.default)))
    return binding


def _literal(owner: type[Message], field: FieldDescriptor, value: object) -> Any:
    """Returns the protobuf JSON form of a constant, made by protobuf itself: it knows every rule of every type."""
    where = f"{owner.DESCRIPTOR.full_name}.{field.name}"
    if _holds_recorded(value):
        raise BindError(
            f"{where}: a plain value holds a reference; build messages with bind(…), lists and maps directly"
        )
    try:
        message = owner(**{field.name: value})
    except (TypeError, ValueError) as error:
        raise BindError(f"{where} is {shape(field)}; {reprlib.repr(value)} is not one ({error})") from None
    written = json_format.MessageToDict(message, preserving_proto_field_name=True)
    if field.name not in written:
        written = json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    return written.get(field.name)


def _message_json(value: object, descriptor: Descriptor, where: str) -> Any:
    if not isinstance(value, Message):
        raise BindError(f"{where}: the default must be a {descriptor.name} message")
    _check_message(descriptor_of(value), descriptor, where)
    return json_format.MessageToDict(value, preserving_proto_field_name=True)


def _value(json: Any) -> struct_pb2.Value:
    return json_format.ParseDict(json, struct_pb2.Value())


def _empty(default: Any, where: str) -> Any:
    if default not in ([], {}, ()):
        raise BindError(f"{where} takes an empty default only: [] or {{}}, not {reprlib.repr(default)}")
    return dict(default) if isinstance(default, dict) else list(default)


def _holds_recorded(value: object) -> bool:
    if isinstance(value, Recorded):
        return True
    if isinstance(value, Mapping):
        return any(map(_holds_recorded, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_recorded, value))


def _is_map(field: FieldDescriptor) -> bool:
    return field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry


def _entry(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    assert field.message_type is not None
    return field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]


def _check_oneofs(descriptor: Descriptor, bindings: Mapping[str, object]) -> None:
    for oneof in descriptor.oneofs:
        given = [field.name for field in oneof.fields if field.name in bindings]
        if len(given) > 1:
            raise BindError(
                f"{descriptor.full_name}: {' and '.join(given)} are of the same oneof {oneof.name!r}; bind one"
            )


def _check_message(given: Descriptor, wanted: Descriptor, where: str) -> None:
    if given.full_name != wanted.full_name:
        raise BindError(f"{where} takes {wanted.full_name}, not {given.full_name}")


def _check_source(source: Source, target: FieldDescriptor, where: str, *, element: bool = False) -> None:
    """Refuses what cannot fit. What might (the sizes of numbers) is left to the server, which knows the contracts."""
    wanted = _element_shape(target) if element else shape(target)
    repeated = target.is_repeated and not element
    if source.field is not None:
        if _family(source.field) != _family(target) or source.repeated != repeated:
            raise BindError(f"{where} is {wanted}, but {source.text} is {_source_shape(source)}")
    elif source.descriptor is not None and (
        repeated or target.message_type is None or target.message_type.full_name != source.descriptor.full_name
    ):
        raise BindError(f"{where} is {wanted}, but {source.text} is {source.descriptor.full_name}")


def _element_shape(field: FieldDescriptor) -> str:
    return shape(field).removeprefix("repeated ")


def _source_shape(source: Source) -> str:
    assert source.field is not None
    return _element_shape(source.field) if source.element else shape(source.field)


def _family(field: FieldDescriptor) -> object:
    if _is_map(field):
        key, value = _entry(field)
        return _family(key), _family(value)
    if field.message_type is not None:
        return field.message_type.full_name
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_BOOL):
        return field.type
    return "number"


_TYPE_NAMES = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_FIXED64: "fixed64",
    FieldDescriptor.TYPE_FIXED32: "fixed32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_SFIXED32: "sfixed32",
    FieldDescriptor.TYPE_SFIXED64: "sfixed64",
    FieldDescriptor.TYPE_SINT32: "sint32",
    FieldDescriptor.TYPE_SINT64: "sint64",
}
