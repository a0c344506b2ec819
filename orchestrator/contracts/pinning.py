"""Which workers' contracts a workflow uses, and the pool of types merged from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from baton.v1 import workflow_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from orchestrator.contracts.children import TypeSource
from orchestrator.contracts.descriptors import Contract, InvalidContract, TypePool, message_names
from orchestrator.contracts.merge import OWN_TYPES, ContractConflict, merge
from orchestrator.contracts.violations import Report, closest, did_you_mean, hints_are_left, nearest


@lru_cache(maxsize=256)
def _message_names(contract: Contract) -> frozenset[str]:
    files = FileDescriptorSet.FromString(contract.files).file
    return frozenset(name for file in files for name in message_names(file))


@dataclass(slots=True)
class Pinned:
    """Contracts that a workflow uses, by worker, with the path of the first use of each."""

    parts: dict[str, Contract] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)

    def add(self, worker: str, contract: Contract, path: str) -> None:
        """Pins the contract of a worker, used at `path`."""
        self.parts.setdefault(worker, contract)
        self.paths.setdefault(worker, path)

    def unique(self) -> list[tuple[str, Contract]]:
        """Returns one worker for each digest."""
        found: dict[str, tuple[str, Contract]] = {}
        for worker, contract in self.parts.items():
            found.setdefault(contract.digest, (worker, contract))
        return list(found.values())


def pin(workflow: workflow_pb2.Workflow, contracts: Sequence[tuple[str, Contract]], report: Report) -> Pinned:
    """Returns the contracts of every worker that serves a method of the workflow, and of those that define its input
    or output type, or that of a signal, where none of these does. Reports methods that nobody serves."""
    serving: dict[str, list[tuple[str, Contract]]] = {}
    for worker, contract in contracts:
        for name, _ in contract.methods():
            serving.setdefault(name, []).append((worker, contract))
    services: dict[str, list[str]] = {}
    for known in serving:
        services.setdefault(known.partition("/")[0], []).append(known.partition("/")[2])
    pinned = Pinned()
    for path, method in _uses(workflow):
        found = serving.get(method)
        if found is None:
            _unknown_method(path, method, services, report)
            continue
        for worker, contract in found:
            pinned.add(worker, contract, path)
    own = {name for file in workflow.types.file for name in message_names(file)}
    for name, path in _types_named(workflow).items():
        if name in own or any(name in _message_names(one) for one in pinned.parts.values()):
            continue
        for worker, contract in contracts:
            if name in _message_names(contract):
                pinned.add(worker, contract, path)
                break
    return pinned


def _uses(workflow: workflow_pb2.Workflow) -> Iterable[tuple[str, str]]:
    for index, step in enumerate(workflow.steps):
        if step.method:
            yield f"steps[{index}].method", step.method
        for number, fallback in enumerate(step.fallback):
            yield f"steps[{index}].fallback[{number}].method", fallback.method
        if step.HasField("undo"):
            yield f"steps[{index}].undo.method", step.undo.method


def _types_named(workflow: workflow_pb2.Workflow) -> dict[str, str]:
    """Returns the message types that the workflow names itself, each with the path of the first place."""
    found: dict[str, str] = {}
    places = [("input_type", workflow.input_type), ("output_type", workflow.output_type)]
    places += [(f"steps[{index}].wait_signal.type", step.wait_signal.type) for index, step in enumerate(workflow.steps)]
    for path, name in places:
        if name:
            found.setdefault(name, path)
    return found


def _unknown_method(path: str, method: str, services: dict[str, list[str]], report: Report) -> None:
    service, _, name = method.partition("/")
    if service in services:
        message = f"{service} has no method `{name}`{closest(name, services[service])}"
    elif services:
        message = f"no registered worker serves {method}{_closest_method(method, services)}"
    else:
        message = f"no registered worker serves {method}: no worker is registered"
    report.add(path, "UNKNOWN_METHOD", message)


def _closest_method(method: str, services: dict[str, list[str]]) -> str:
    """Returns a hint at the method of this name in another service, else at a close one of a close service."""
    if not hints_are_left():
        return ""
    service, _, name = method.partition("/")
    if not name:
        service, _, name = method.rpartition(".")
    if name in services.get(service, ()):
        return did_you_mean(f"{service}/{name}")
    same = {_simple(other): other for other, methods in services.items() if name in methods}
    found = nearest(_simple(service), same) or (next(iter(same.values())) if len(same) == 1 else "")
    if found:
        return did_you_mean(f"{found}/{name}")
    found = nearest(_simple(service), {_simple(other): other for other in services})
    near = nearest(name, {one: one for one in services[found]}) if found else ""
    return did_you_mean(f"{found}/{near}" if near else found)


def _simple(service: str) -> str:
    return service.rpartition(".")[2].removesuffix("Service")


def merge_pinned(
    pinned: Pinned, workflow: workflow_pb2.Workflow, children: Sequence[TypeSource], report: Report
) -> TypePool | None:
    """Returns the merged types; None, with a violation, where the contracts cannot live together."""
    own = workflow.types if workflow.HasField("types") else None
    try:
        return merge(pinned.unique(), own, [(child.owner, child.files) for child in children])
    except ContractConflict as error:
        paths = {**pinned.paths, **{child.owner: child.path for child in children}}
        path = "types" if error.second == OWN_TYPES else paths.get(error.second, "types")
        report.add(path, "CONTRACT_CONFLICT", str(error))
    except InvalidContract as error:
        report.add("types", "INVALID_CONTRACT", str(error))
    return None
