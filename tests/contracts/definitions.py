"""Parts of workflow definitions in JSON form, for the tables of wrong workflows."""

from __future__ import annotations

from typing import Any

Wrong = dict[str, tuple[dict[str, Any], list[tuple[str, str]]]]
"""Definitions by name, each with the paths and reasons of its violations."""

RESERVE: dict[str, Any] = {
    "id": "reserve",
    "method": "shop.v1.Inventory/Reserve",
    "request": {"order_id": {"path": "input.order_id"}},
}
MAYBE: dict[str, Any] = RESERVE | {"when": "input.express"}
HANDLED: dict[str, Any] = RESERVE | {"onFailure": [{}]}


def charge(**request: Any) -> dict[str, Any]:
    return {"id": "charge", "method": "shop.v1.Payments/Charge", "request": request}


def notify(**request: Any) -> dict[str, Any]:
    return {"id": "notify", "method": "shop.v1.Shipping/Notify", "request": request}


def mirror(**request: Any) -> dict[str, Any]:
    return {"id": "mirror", "method": "shop.v1.Mirror/Reflect", "request": request}


def flow(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputType": "shop.v1.OrderInput", "steps": list(steps)} | more


def path(text: str) -> dict[str, Any]:
    return {"path": text}


def cel(text: str) -> dict[str, Any]:
    return {"expression": text}


def lit(value: Any) -> dict[str, Any]:
    return {"literal": value}


def msg(**fields: Any) -> dict[str, Any]:
    return {"message": {"fields": fields}}


ITEMS = path("input.items")


def mapped(items: dict[str, Any], **request: Any) -> dict[str, Any]:
    return charge(**request) | {"map": {"items": items}}


def repeated(until: str, **request: Any) -> dict[str, Any]:
    return charge(**request) | {"repeat": {"until": until}}
