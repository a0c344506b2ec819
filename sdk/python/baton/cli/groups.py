"""Groups of commands, such as `baton run`."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

_OWN_WORDS = {"show": "get", "describe": "get", "delete": "rm", "remove": "rm", "list": "ls"}
"""What other command lines call a thing, and what this one calls it."""


class _Group(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # typer of some versions has a click of its own
        own = _OWN_WORDS.get(args[0], "")
        if args[0] not in self.commands and own in self.commands and not ctx.resilient_parsing:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{own}'?")
        return super().resolve_command(ctx, args)


def new_group(text: str) -> typer.Typer:
    """Makes an empty group; `text` is its help."""
    return typer.Typer(cls=_Group, help=text, no_args_is_help=True, rich_markup_mode=None)
