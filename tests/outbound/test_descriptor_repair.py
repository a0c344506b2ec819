"""Files that no protoc wrote: what can be put right is, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format, timestamp_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from orchestrator.outbound.descriptor_repair import NotRepairable, repair

BY_PACKAGE = """
    name: "shop.proto" package: "shop" syntax: "proto3"
    message_type {
      name: "Node"
      field { name: "kind" number: 1 type: TYPE_ENUM label: LABEL_OPTIONAL type_name: "Kind" }
      field { name: "children" number: 2 type: TYPE_MESSAGE label: LABEL_REPEATED type_name: "Node" }
      field { name: "by_name" number: 3 type: TYPE_MESSAGE label: LABEL_REPEATED type_name: "By_name" }
      field { name: "create_time" number: 4 type: TYPE_MESSAGE label: LABEL_OPTIONAL
              type_name: "google.protobuf.Timestamp" }
      field { name: "inner" number: 5 type: TYPE_MESSAGE label: LABEL_OPTIONAL type_name: "Money" }
      field { name: "price" number: 6 type: TYPE_MESSAGE label: LABEL_OPTIONAL type_name: "base.Money" }
      nested_type {
        name: "By_name"
        field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
        field { name: "value" number: 2 type: TYPE_MESSAGE label: LABEL_OPTIONAL type_name: "Node" }
        options { map_entry: true }
      }
      nested_type { name: "Money" field { name: "inner" number: 1 type: TYPE_BOOL label: LABEL_OPTIONAL } }
      enum_type { name: "Kind" value { name: "NONE" number: 0 } value { name: "LEAF" number: 1 } }
    }
    message_type { name: "Money" field { name: "outer" number: 1 type: TYPE_BOOL label: LABEL_OPTIONAL } }
    service { name: "Stock" method { name: "Count" input_type: ".shop.Node" output_type: "Money" } }
"""
BASE = """
    name: "base.proto" package: "base" syntax: "proto3"
    message_type { name: "Money" field { name: "units" number: 1 type: TYPE_INT64 label: LABEL_OPTIONAL } }
"""
WELL_KNOWN_AS_ONE = """
    name: "google_protobuf.proto" package: "google.protobuf" syntax: "proto3"
    message_type { name: "Timestamp" field { name: "seconds" number: 1 type: TYPE_INT64 label: LABEL_OPTIONAL } }
    message_type { name: "Duration" field { name: "seconds" number: 1 type: TYPE_INT64 label: LABEL_OPTIONAL } }
"""


def parse(text: str) -> FileDescriptorProto:
    return text_format.Parse(text, FileDescriptorProto())


def test_optional_fields_are_marked_and_their_oneofs_come_last() -> None:
    text = """
        name: "o.proto" package: "o" syntax: "proto3"
        message_type {
          name: "M"
          field { name: "count" number: 1 type: TYPE_INT32 label: LABEL_OPTIONAL oneof_index: 0 }
          field { name: "text" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL oneof_index: 1 }
          field { name: "flag" number: 3 type: TYPE_BOOL label: LABEL_OPTIONAL oneof_index: 1 }
          oneof_decl { name: "_count" }
          oneof_decl { name: "choice" }
        }
    """
    (file,) = repair([parse(text)])
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    message = pool.FindMessageTypeByName("o.M")
    assert [oneof.name for oneof in message.oneofs] == ["choice", "_count"]
    assert [field.name for field in message.oneofs[0].fields] == ["text", "flag"]
    assert file.message_type[0].field[0].proto3_optional


def test_files_by_package_become_such_as_protoc_writes() -> None:
    files = repair([parse(BY_PACKAGE), parse(BASE), parse(WELL_KNOWN_AS_ONE)])
    assert {file.name for file in files} == {"shop.proto", "base.proto", "google/protobuf/timestamp.proto"}
    assert files[-1].name == "shop.proto"
    assert sorted(files[-1].dependency) == ["base.proto", "google/protobuf/timestamp.proto"]
    fields = {field.name: field.type_name for field in files[-1].message_type[0].field}
    assert fields == {
        "kind": ".shop.Node.Kind",
        "children": ".shop.Node",
        "by_name": ".shop.Node.ByNameEntry",
        "create_time": ".google.protobuf.Timestamp",
        "inner": ".shop.Node.Money",
        "price": ".base.Money",
    }
    method = files[-1].service[0].method[0]
    assert (method.input_type, method.output_type) == (".shop.Node", ".shop.Money")
    pool = DescriptorPool()
    for file in files:
        pool.Add(file)
    node = GetMessageClass(pool.FindMessageTypeByName("shop.Node"))
    made: Any = node(by_name={"a": node(kind=1)}, create_time={"seconds": 7}, price={"units": 3}, inner={"inner": True})
    assert node.FromString(made.SerializeToString()) == made
    assert timestamp_pb2.Timestamp.FromString(made.create_time.SerializeToString()).seconds == 7


def test_well_known_files_that_the_server_gives_are_kept_as_they_are() -> None:
    given = FileDescriptorProto.FromString(timestamp_pb2.DESCRIPTOR.serialized_pb)
    given.options.java_package = "of.the.server"
    files = repair([parse(BY_PACKAGE), parse(BASE), given])
    assert next(file for file in files if file.name == given.name).options.java_package == "of.the.server"


def test_imports_that_are_gone_leave_the_public_ones_in_their_places() -> None:
    facade = parse('name: "facade.proto" dependency: "gone.proto" dependency: "base.proto" public_dependency: [0, 1]')
    user = parse(
        """
        name: "user.proto" package: "user" dependency: "facade.proto"
        message_type { name: "A" field { name: "m" number: 1 type: TYPE_MESSAGE label: LABEL_OPTIONAL
                       type_name: ".base.Money" } }
        """
    )
    files = {file.name: file for file in repair([user, facade, parse(BASE)])}
    assert list(files["facade.proto"].dependency) == ["base.proto"]
    assert list(files["facade.proto"].public_dependency) == [0]
    assert list(files["user.proto"].dependency) == ["facade.proto"], "base.proto is visible through facade.proto"


@pytest.mark.parametrize("name", [".base.Money", "base.Money", "Money"])
def test_a_type_that_is_nowhere_defined_is_named(name: str) -> None:
    user = parse(
        f"""
        name: "user.proto" package: "user"
        message_type {{ name: "A" field {{ name: "m" number: 1 type: TYPE_MESSAGE label: LABEL_OPTIONAL
                        type_name: "{name}" }} }}
        """
    )
    with pytest.raises(NotRepairable, match=rf"user\.proto uses {name.lstrip('.')}, which none"):
        repair([user])
