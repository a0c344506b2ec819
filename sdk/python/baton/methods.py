"""Finds the gRPC method behind the function of a generated servicer. Only descriptors are read; nothing is called."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from baton.errors import BindError

_SUFFIX = "Servicer"
_MODULE_SUFFIX = "_pb2_grpc"


def method_of(method: Callable[..., Any]) -> MethodDescriptor:
    """Returns the descriptor of the unary method that a servicer's function stands for.

    Takes functions of a generated servicer class or of a class derived from it. Raises BindError for anything else and
    for methods that stream.
    """
    function = inspect.unwrap(getattr(method, "__func__", method))
    name = getattr(function, "__name__", "")
    for owner in _owners(function):
        service = service_of(owner)
        if service is not None and name in service.methods_by_name:
            found = service.methods_by_name[name]
            if found.client_streaming or found.server_streaming:
                raise BindError(f"{path_of(found)} streams; steps call unary methods")
            return found
    raise BindError(
        f"{getattr(function, '__qualname__', method)!r} is not a method of a generated servicer; give the function of "
        "the class in the _pb2_grpc module, such as PaymentsServiceServicer.Charge"
    )


def path_of(method: MethodDescriptor) -> str:
    """Returns a method as `package.Service/Method`."""
    return f"{method.containing_service.full_name}/{method.name}"


def snake_case(name: str) -> str:
    """Returns the name of a method as it is in ids: `ChargeLater` as `charge_later`."""
    spaced = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", spaced).lower()


def service_of(servicer: type) -> ServiceDescriptor | None:
    """Returns the service of a generated servicer class, None where the class is not a generated one."""
    module = sys.modules.get(servicer.__module__)
    if module is None or not servicer.__module__.endswith(_MODULE_SUFFIX) or not servicer.__name__.endswith(_SUFFIX):
        return None
    name = servicer.__name__.removesuffix(_SUFFIX)
    # The file of the service has its name from the module; the messages may live in files of other packages.
    messages = importlib.import_module(servicer.__module__.removesuffix("_grpc"))
    services = messages.DESCRIPTOR.services_by_name
    if name in services:
        found = services[name]
        assert isinstance(found, ServiceDescriptor)
        return found
    full_name = _registered_name(module, servicer)
    return descriptor_pool.Default().FindServiceByName(full_name) if full_name else None


def generated_bases(servicer: type) -> list[tuple[type, ServiceDescriptor]]:
    """Returns the generated servicer classes that a class derives from, with their services."""
    found: list[tuple[type, ServiceDescriptor]] = []
    for base in servicer.__mro__:
        service = service_of(base)
        if service is not None:
            found.append((base, service))
    return found


def _owners(function: Any) -> Iterator[type]:
    """Yields the class that defines a function and its bases. The class is found by the function's qualified name."""
    owner: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for part in getattr(function, "__qualname__", "").split(".")[:-1]:
        owner = getattr(owner, part, None)
    if isinstance(owner, type):
        yield from owner.__mro__


class _Registrations:
    """Takes the place of a server, to see under which name a servicer registers itself."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Does nothing."""

    def add_registered_method_handlers(self, name: str, handlers: object) -> None:
        """Notes the full name of the service."""
        self.names.append(name)


def _registered_name(module: Any, servicer: type) -> str | None:
    add = getattr(module, f"add_{servicer.__name__}_to_server", None)
    if add is None:
        return None
    registrations = _Registrations()
    add(servicer(), registrations)
    return registrations.names[0] if registrations.names else None
