"""Contracts read from descriptors, and contracts of several workers merged into one pool."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import wrappers_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import Default

from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.descriptors import CONTRACT_LIMIT_BYTES, Contract, InvalidContract, read_contract
from orchestrator.contracts.merge import ContractConflict, merge
from tests.contracts.corpus import compile_protos, contract, contract_of, workers, workflow

MONEY = """
syntax = "proto3";
package common;
message Money {{ string currency = 1; int64 units = 2; {more} }}
enum Kind {{ KIND_UNSPECIFIED = 0; CASH = 1; {values} }}
"""


def worker(service: str, money: str, name: str = "common/money.proto", imports: str = "") -> Contract:
    """Returns the contract of a service that imports its own copy of common/money.proto."""
    source = f"""
    syntax = "proto3";
    package {service.lower()};
    import "{name}";
    message Request {{ common.Money money = 1; common.Kind kind = 2; }}
    message Response {{ common.Money money = 1; }}
    service {service} {{ rpc Call(Request) returns (Response); }}
    """
    path = f"{service.lower()}.proto"
    return read_contract(compile_protos([path], {path: source, name: money}))


def money(more: str = "", values: str = "") -> str:
    return MONEY.format(more=more, values=values)


def test_a_contract_lists_services_and_methods() -> None:
    read = contract("shop/v1/services.proto")
    assert [service.name for service in read.services] == [
        "shop.v1.Inventory",
        "shop.v1.Mirror",
        "shop.v1.Payments",
        "shop.v1.Shipping",
    ]
    methods = {method.name: method for method in read.services[0].methods}
    assert methods["Reserve"].input_type == "shop.v1.ReserveRequest"
    assert methods["Reserve"].idempotency_level == "IDEMPOTENCY_UNKNOWN"
    assert methods["Release"].idempotency_level == "IDEMPOTENT"
    assert (methods["Watch"].client_streaming, methods["Watch"].server_streaming) == (False, True)
    assert (methods["Upload"].client_streaming, methods["Upload"].server_streaming) == (True, False)


def test_the_digest_does_not_depend_on_order_or_source_information() -> None:
    files = compile_protos(["shop/v1/services.proto"])
    first = read_contract(files)
    files[-1].source_code_info.location.add(leading_comments="changed")
    assert read_contract(reversed(files)).digest == first.digest
    assert len(first.digest) == 64
    assert read_contract(files, ["shop.v1.Mirror"]).digest != first.digest


def test_well_known_files_are_added() -> None:
    files = [file for file in compile_protos(["shop/v1/services.proto"]) if not file.name.startswith("google/")]
    names = [file.name for file in FileDescriptorSet.FromString(read_contract(files).files).file]
    assert "google/protobuf/struct.proto" in names
    assert names.index("google/protobuf/struct.proto") < names.index("shop/v1/types.proto")


def test_services_of_grpc_are_left_out() -> None:
    source = 'syntax = "proto3"; package grpc.health.v1; message A {} service Health { rpc Check(A) returns (A); }'
    files = [*compile_protos(["shop/v1/services.proto"]), *compile_protos(["health.proto"], {"health.proto": source})]
    assert not any(service.name.startswith("grpc.") for service in read_contract(files).services)
    with pytest.raises(InvalidContract, match="no service"):
        read_contract(compile_protos(["health.proto"], {"health.proto": source}))


def test_sets_that_are_no_contract() -> None:
    files = compile_protos(["shop/v1/services.proto"])
    with pytest.raises(InvalidContract, match=r"shop/v1/types.proto.*missing"):
        read_contract([file for file in files if file.name != "shop/v1/types.proto"])
    with pytest.raises(InvalidContract, match=r"no service shop.v1.Mirorr; did you mean `shop.v1.Mirror`"):
        read_contract(files, ["shop.v1.Mirorr"])
    with pytest.raises(InvalidContract, match="no service"):
        read_contract([])
    other = FileDescriptorProto()
    other.CopyFrom(files[-1])
    other.message_type[0].name = "Renamed"
    with pytest.raises(InvalidContract, match="twice"):
        read_contract([*files, other])
    other.message_type[0].field[1].type_name = ".nowhere.Type"
    with pytest.raises(InvalidContract, match="valid set"):
        read_contract([other, *files[:-1]])
    disguised = FileDescriptorProto(name="google/protobuf/any.proto", package="google.protobuf")
    disguised.service.add(name="Service")
    with pytest.raises(InvalidContract, match=r"any.proto is protobuf's own"):
        read_contract([disguised])
    circle = [
        FileDescriptorProto(name="a.proto", dependency=["b.proto"]),
        FileDescriptorProto(name="b.proto", dependency=["a.proto"]),
    ]
    with pytest.raises(InvalidContract, match="import each other"):
        read_contract(circle)


def test_a_contract_has_a_limit() -> None:
    files = compile_protos(["shop/v1/services.proto"])
    files[-1].message_type.add(name="X" * CONTRACT_LIMIT_BYTES)
    with pytest.raises(InvalidContract, match="limit"):
        read_contract(files)


def test_the_default_pool_is_left_alone() -> None:
    check_workflow(workflow({"steps": [{"id": "a", "method": "shop.v1.Mirror/Reflect"}]}), workers())
    with pytest.raises(KeyError):
        Default().FindMessageTypeByName("shop.v1.Everything")  # the examples' generated shop.v1 has no such message
    assert wrappers_pb2.Int32Value(value=1).value == 1


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("more", "values"), [("", ""), ("int32 nanos = 3;", ""), ("", "CARD = 2;"), ("reserved 9;", "")]
)
def test_a_compatible_superset_is_taken(more: str, values: str, reverse: bool) -> None:
    parts = [("first", worker("First", money())), ("second", worker("Second", money(more, values)))]
    types = merge(parts[::-1] if reverse else parts)
    found = types.find_message("common.Money")
    assert found is not None
    assert ("nanos" in found.fields_by_name) == ("nanos" in more)
    assert types.find_method("first.First/Call") is not None
    assert types.find_method("second.Second/Call") is not None


@pytest.mark.parametrize(
    "other",
    [
        money().replace("int64 units = 2", "int32 units = 2"),
        money().replace("int64 units = 2", "int64 units = 3"),
        money().replace("int64 units = 2", "repeated int64 units = 2"),
        money().replace("int64 units = 2", "optional int64 units = 2"),
        money().replace("int64 units = 2", "oneof u { int64 units = 2; }"),
        money().replace("CASH = 1", "CASH = 2"),
        money("int32 nanos = 3;").replace("int64 units = 2;", ""),
    ],
)
def test_a_conflict_names_both_workers(other: str) -> None:
    parts = [("first", worker("First", money())), ("second", worker("Second", other))]
    with pytest.raises(ContractConflict, match=r"first and second define the file common/money.proto differently"):
        merge(parts)


@pytest.mark.parametrize(
    "required",
    ["required string currency = 2;", "optional string currency = 2 [(buf.validate.field).required = true];"],
)
def test_a_field_that_only_one_requires_is_a_conflict(required: str) -> None:
    def part(service: str, more: str) -> Contract:
        sources = {
            "money.proto": 'syntax = "proto2"; package common; import "buf/validate/validate.proto";'
            f"message Money {{ optional int64 units = 1; {more} }}",
            f"{service}.proto": f'syntax = "proto2"; package {service}; import "money.proto";'
            f"service {service.upper()} {{ rpc Call(common.Money) returns (common.Money); }}",
        }
        return read_contract(compile_protos([f"{service}.proto"], sources))

    with pytest.raises(ContractConflict, match="required"):
        merge([("first", part("first", "")), ("second", part("second", required))])
    merge([("first", part("first", "")), ("second", part("second", "optional string currency = 2;"))])


def test_the_same_types_under_another_file_name_are_merged() -> None:
    parts = [
        ("first", worker("First", money())),
        ("second", worker("Second", money("int32 nanos = 3;"), "vendor/common/money.proto")),
    ]
    types = merge(parts)
    for name in ("first.First/Call", "second.Second/Call"):
        method: Any = types.find_method(name)
        found = method.input_type.fields_by_name["money"].message_type
        assert found.full_name == "common.Money"
        assert "nanos" in found.fields_by_name


def test_files_that_share_nothing_but_their_name_live_together() -> None:
    other = 'syntax = "proto3"; package other; message Money { string amount = 1; } enum Kind { NONE = 0; }'
    second = compile_protos(
        ["second.proto"],
        {
            "common/money.proto": other,
            "second.proto": 'syntax = "proto3"; package second; import "common/money.proto";'
            "service Second { rpc Call(other.Money) returns (other.Money); }",
        },
    )
    types = merge([("first", worker("First", money())), ("second", read_contract(second))])
    assert types.find_message("common.Money") is not None
    method: Any = types.find_method("second.Second/Call")
    assert list(method.input_type.fields_by_name) == ["amount"]


def test_types_of_several_files_may_come_in_one() -> None:
    """As from reflection that gives one file for a package: some types are known, some only there."""
    parts = {
        "a.proto": 'syntax = "proto3"; package shop; message A { int64 first_value = 1; }',
        "b.proto": 'syntax = "proto3"; package shop; import "a.proto"; message B { A a = 1; }'
        "service Split { rpc Call(B) returns (B); }",
    }
    whole = (
        'syntax = "proto3"; package shop; message A { int64 first_value = 1; } message B { A a = 1; }'
        "message C { B b = 1; } service Whole { rpc Call(C) returns (A); }"
    )
    split = read_contract(compile_protos(["b.proto"], parts))
    by_package = compile_protos(["shop.proto"], {"shop.proto": whole})
    for field in by_package[0].message_type[0].field:
        field.ClearField("json_name")
    for order in (1, -1):
        types = merge([("split", split), ("whole", read_contract(by_package))][::order])
        for name in ("shop.Split/Call", "shop.Whole/Call"):
            assert types.find_method(name) is not None
    by_package[0].message_type[1].field[0].number = 2
    with pytest.raises(ContractConflict, match=r"split and whole define the file shop.proto differently"):
        merge([("split", split), ("whole", read_contract(by_package))])


def test_a_type_in_files_that_cannot_be_one_is_a_conflict() -> None:
    parts = [
        ("first", worker("First", money())),
        ("second", worker("Second", money() + "message Extra {}", "vendor/common/money.proto")),
        (
            "third",
            worker("Third", 'syntax = "proto3"; package common; message Money {} enum Kind { K = 0; }', "x.proto"),
        ),
    ]
    with pytest.raises(ContractConflict, match="third"):
        merge(parts)


def test_conflicts_are_reported_at_the_method_and_only_among_used_workers() -> None:
    contracts = [
        ("first", worker("First", money())),
        ("second", worker("Second", money().replace("int64", "int32"))),
    ]
    both = workflow({"steps": [{"id": "a", "method": "first.First/Call"}, {"id": "b", "method": "second.Second/Call"}]})
    violations = check_workflow(both, contracts).violations
    assert [(violation.path, violation.reason) for violation in violations] == [
        ("steps[1].method", "CONTRACT_CONFLICT")
    ]
    for name in ("first.First/Call", "second.Second/Call"):
        checked = check_workflow(workflow({"steps": [{"id": "a", "method": name}]}), contracts)
        assert checked.compiled is not None
        assert len(checked.compiled.contract_digests) == 1


def test_own_types_of_a_workflow() -> None:
    own = FileDescriptorSet(
        file=compile_protos(
            ["own.proto"],
            {
                "own.proto": 'syntax = "proto3"; package own; import "shop/v1/types.proto";'
                "message In { shop.v1.Money money = 1; } message Out { string id = 1; }"
            },
        )
    )
    definition = workflow(
        {
            "inputType": "own.In",
            "outputType": "own.Out",
            "steps": [
                {
                    "id": "charge",
                    "method": "shop.v1.Payments/Charge",
                    "request": {"amount": {"path": "input.money"}},
                }
            ],
            "output": {"id": {"path": "steps.charge.output.charge_id"}},
        }
    )
    definition.types.CopyFrom(own)
    checked = check_workflow(definition, workers())
    assert checked.compiled is not None, checked.violations

    definition.types.file[-1].dependency[0] = "nowhere.proto"
    violations = check_workflow(definition, workers()).violations
    assert [(violation.path, violation.reason) for violation in violations] == [("types", "INVALID_CONTRACT")]

    definition.types.CopyFrom(own)
    for file in definition.types.file:
        if file.name == "shop/v1/types.proto":
            file.message_type[0].field[0].number = 77
    violations = check_workflow(definition, workers()).violations
    assert [(violation.path, violation.reason) for violation in violations] == [("types", "CONTRACT_CONFLICT")]
    assert "the workflow's types" in violations[0].message


def test_two_workers_of_one_contract_pin_it_once() -> None:
    shop = contract("shop/v1/services.proto")
    checked = check_workflow(
        workflow({"steps": [{"id": "a", "method": "shop.v1.Mirror/Reflect"}]}), [("one", shop), ("two", shop)]
    )
    assert checked.compiled is not None
    assert checked.compiled.contract_digests == (shop.digest,)


def test_struct_as_input_needs_no_descriptors() -> None:
    definition = workflow(
        {
            "inputType": "google.protobuf.Struct",
            "steps": [
                {
                    "id": "a",
                    "method": "shop.v1.Shipping/Notify",
                    "request": {"text": {"expression": "string(input.name)"}},
                }
            ],
        }
    )
    checked = check_workflow(definition, workers())
    assert checked.compiled is not None, checked.violations


def test_a_worker_may_bring_baton_s_own_files() -> None:
    source = """
    syntax = "proto3";
    package agent;
    import "google/protobuf/any.proto";
    service Agent { rpc Act(Empty) returns (Empty); }
    message Empty { google.protobuf.Any any = 1; }
    """
    assert merge([("agent", contract_of(source))]).find_message("baton.v1.Failure") is not None


def _served(package: str, service: str, more: str, syntax: str = "proto3") -> Contract:
    source = f"""
    syntax = "{syntax}"; package {package}; import "google/protobuf/descriptor.proto";
    {more}
    message {service}Message {{}}
    service {service} {{ rpc Call({service}Message) returns ({service}Message); }}
    """
    return contract_of(source, f"{service.lower()}.proto")


CLASHES = {
    "values of two enums": (
        _served("p", "A", "enum E { X = 0; }"),
        _served("p", "B", "enum F { X = 0; }"),
        ["`p.X`, as a value of the enum p.E (a.proto) and as a value of the enum p.F (b.proto)", "rename one"],
    ),
    "a value and a message": (
        _served("p", "A", "enum E { X = 0; }"),
        _served("p", "B", "message X {}"),
        ["`p.X`, as a value of the enum p.E (a.proto) and as a message (b.proto)"],
    ),
    "the number of an extension": (
        _served("p", "A", "extend google.protobuf.FieldOptions { optional string a = 50001; }", "proto2"),
        _served("q", "B", "extend google.protobuf.FieldOptions { optional string b = 50001; }", "proto2"),
        ["the number 50001 of google.protobuf.FieldOptions", "the extension p.a (a.proto)", "another number"],
    ),
}


@pytest.mark.parametrize("name", CLASHES)
def test_contracts_that_the_pool_refuses_name_both_workers(name: str) -> None:
    first, second, parts = CLASHES[name]
    with pytest.raises(ContractConflict, match="first and second cannot live together") as caught:
        merge([("first", first), ("second", second)])
    for part in parts:
        assert part in str(caught.value)
    steps = [{"id": "a", "method": "p.A/Call"}, {"id": "b", "method": second.services[0].name + "/Call"}]
    (violation,) = check_workflow(workflow({"steps": steps}), [("first", first), ("second", second)]).violations
    assert (violation.path, violation.reason) == ("steps[1].method", "CONTRACT_CONFLICT")


@pytest.mark.parametrize("name", CLASHES)
def test_a_contract_that_clashes_with_itself_says_where(name: str) -> None:
    first, second, parts = CLASHES[name]
    files = [*FileDescriptorSet.FromString(first.files).file, *FileDescriptorSet.FromString(second.files).file]
    with pytest.raises(InvalidContract, match=r"the file b.proto is not a valid set of descriptors") as caught:
        read_contract(files)
    for part in parts:
        assert part in str(caught.value)


def test_a_type_that_nothing_defines_is_named() -> None:
    files = compile_protos(["shop/v1/services.proto"])
    (services,) = (file for file in files if file.service)
    services.service[0].method[0].input_type = ".shop.v1.Nothing"
    with pytest.raises(InvalidContract, match=r"names `shop.v1.Nothing`, which no file that comes with it defines"):
        read_contract(files)
