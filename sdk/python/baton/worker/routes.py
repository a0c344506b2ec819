"""Finds the handler of a method as a gRPC server would, with the classes that its servicer's generated module uses."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from baton.methods import generated_bases


@dataclass(frozen=True, slots=True)
class Route:
    """A unary method that is served: how its request is read, its handler, and how its response is written."""

    method: str
    handle: Callable[[Any, Any], Any]
    parse: Callable[[bytes], Any]
    serialize: Callable[[Any], bytes]
    plain: bool
    """Whether the handler is a plain function, which blocks its thread."""


class Routes:
    """The unary methods of some servicers."""

    def __init__(self, servicers: Iterable[object]) -> None:
        registrations = _Registrations()
        self._routes: dict[str, Route] = {}
        for servicer in servicers:
            for base, service in generated_bases(type(servicer)):
                registrations.clear()
                add_to_server(base, servicer, registrations)
                for method in service.methods:
                    path = f"{service.full_name}/{method.name}"
                    handler = registrations.handler_of(path)
                    if handler is not None and handler.unary_unary is not None:
                        self._routes[path] = Route(
                            path,
                            handler.unary_unary,
                            handler.request_deserializer,
                            handler.response_serializer,
                            not inspect.iscoroutinefunction(handler.unary_unary),
                        )

    def find(self, method: str) -> Route | None:
        """Returns the route of `package.Service/Method`, None where it is not served."""
        return self._routes.get(method)


def add_to_server(base: type, servicer: object, server: Any) -> None:
    """Adds a servicer to a server under one of the generated classes that it derives from."""
    getattr(sys.modules[base.__module__], f"add_{base.__name__}_to_server")(servicer, server)


@dataclass(frozen=True, slots=True)
class _Details:
    """What a generic handler asks of a call to find its method."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...] = ()


class _Registrations:
    """Takes the place of a server, to see the handlers that a generated module makes."""

    def __init__(self) -> None:
        self._generic: list[Any] = []

    def clear(self) -> None:
        """Forgets what was added."""
        self._generic.clear()

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """Notes the handlers of a service."""
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, name: str, handlers: object) -> None:
        """Does nothing: the generic handlers hold the same."""

    def handler_of(self, path: str) -> Any:
        """Returns the handler of a method, None where there is none."""
        found = (each.service(_Details(f"/{path}")) for each in self._generic)
        return next((handler for handler in found if handler is not None), None)
