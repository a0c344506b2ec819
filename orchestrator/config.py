"""Settings of a server: the environment, read once, into frozen values. The only reader of BATON_* for the server.

Each part is handed only its own settings. PG* and OTEL_* are the standard ones and are read where they belong.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from orchestrator.engine.limits import EngineLimits

PREFIX = "BATON_"
OTHER_NAMES = frozenset(
    {
        "BATON_DATABASE_URL",
        "BATON_LOG_FORMAT",
        "BATON_PROCESS_NUMBER",
        "BATON_LOG_LEVEL",
        "BATON_DEV_DIRECTORY",
        "BATON_ADVERTISE_ADDRESS",
        "BATON_ADDRESS",
        "BATON_NAMESPACE",
        "BATON_PRINCIPAL",
    }
)
"""BATON_* variables that are read elsewhere: by the database pool, the logs, the command line and the SDK."""

MAX_NAMESPACES = 1_000
_NAMESPACE = re.compile(r"[a-z][a-z0-9-]{0,62}")

EVERYWHERE = frozenset({"", "0.0.0.0", "[::]"})
"""Hosts that are listened on, and at which nobody can be reached from elsewhere."""


class SettingInvalid(Exception):
    """A BATON_* variable is unknown or has a value that cannot be taken; the text names it and the cure."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server is started with. Variable names are the field names in capitals, with BATON_ before them."""

    listen_address: str = "127.0.0.1:7330"
    replica_address: str = ""
    replica_listen_address: str = ""
    namespaces: tuple[str, ...] = ()
    circuit_fail_max: int = 5
    circuit_reset_seconds: float = 5.0
    stop_grace_seconds: float = 5.0
    retention_days: float = math.inf
    max_served_bytes: int = 64 << 20
    limits: EngineLimits = field(default_factory=EngineLimits)


def _weights(name: str, text: str) -> Mapping[str, float]:
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        namespace, _, number = part.partition("=")
        try:
            weights[namespace.strip()] = float(number)
        except ValueError:
            weights[namespace.strip()] = 0.0
        if not (0 < weights[namespace.strip()] < math.inf) or not namespace.strip():
            raise SettingInvalid(f"{name}={text!r}: {part!r} is not NAMESPACE=WEIGHT with a weight above 0")
    return weights


def _namespaces(name: str, text: str) -> tuple[str, ...]:
    namespaces = tuple(filter(None, (part.strip() for part in text.split(","))))
    for namespace in namespaces:
        if not _NAMESPACE.fullmatch(namespace):
            raise SettingInvalid(
                f"{name}={text!r}: {namespace!r} is not of 1 to 63 of a-z, 0-9 and -, beginning with a letter"
            )
    if len(namespaces) > MAX_NAMESPACES:
        raise SettingInvalid(f"{name} names {len(namespaces)} namespaces; the limit is {MAX_NAMESPACES}")
    return namespaces


def host_of(address: str) -> str:
    """The host of HOST:PORT."""
    return address.rpartition(":")[0]


def _require_reachable(name: str, address: str) -> None:
    port = address.rpartition(":")[2]
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65_536
    if not address.startswith("unix:") and (not is_port or host_of(address) in EVERYWHERE):
        raise SettingInvalid(f"{name}={address!r} is not HOST:PORT of this replica, as other replicas reach it")


def _parse(name: str, text: str, kind: type) -> object:
    if kind is dict:
        return _weights(name, text)
    if kind is tuple:
        return _namespaces(name, text)
    try:
        value: object = kind(text)
    except ValueError:
        raise SettingInvalid(f"{name}={text!r} is not a {kind.__name__}") from None
    if isinstance(value, int | float) and not (0 < value < math.inf):
        raise SettingInvalid(f"{name}={text!r} must be above 0")
    return value


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Reads settings. Errors: SettingInvalid."""
    own = {PREFIX + one.name.upper(): one for one in fields(Settings) if one.name != "limits"}
    limits = {PREFIX + one.name.upper(): one for one in fields(EngineLimits)}
    defaults = Settings()
    changes: dict[str, object] = {}
    limit_changes: dict[str, object] = {}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or name in OTHER_NAMES:
            continue
        if name in own:
            changes[own[name].name] = _parse(name, text, type(getattr(defaults, own[name].name)))
        elif name in limits:
            limit_changes[limits[name].name] = _parse(name, text, type(getattr(defaults.limits, limits[name].name)))
        else:
            close = difflib.get_close_matches(name, [*own, *limits, *OTHER_NAMES], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SettingInvalid(f"{name} is not a setting of Baton{hint}")
    if changes.get("replica_address"):
        _require_reachable("BATON_REPLICA_ADDRESS", str(changes["replica_address"]))
    return replace(defaults, limits=replace(defaults.limits, **limit_changes), **changes)  # type: ignore[arg-type]
