"""Pages of lists: how many items, and the opaque tokens that say where the next page starts.

A token holds a version, a hash of what the list was asked for, and the position after the last item shown. It is not
a secret and gives no right: positions are only read inside the caller's namespace.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message

from orchestrator.domain.errors import FieldFault, InvalidPageToken
from orchestrator.engine.view import PAGE_LIMIT_BYTES

PAGE_SIZE = 50
EVENT_PAGE_SIZE = 200
PAGE_SIZE_LIMIT = 1000

TOKEN_LIMIT = 512
"""Characters of a token."""

_VERSION = b"\x01"
_HASH_BYTES = 8
_SEQUENCE_LIMIT = 1 << 63

Item = TypeVar("Item", bound=Message)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list was asked for: a token of one listing fits no other."""

    method: str
    namespace: str
    subject: str = ""

    def token(self, position: str) -> str:
        """Makes the token of the page after `position`."""
        return base64.urlsafe_b64encode(_VERSION + self._hash() + position.encode()).decode().rstrip("=")

    def position(self, token: str) -> str:
        """Reads a token; empty for the first page. Raises InvalidPageToken where it was not made by this listing."""
        if not token:
            return ""
        if len(token) > TOKEN_LIMIT:
            raise invalid_page_token()
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            position = raw[1 + _HASH_BYTES :].decode()
        except (binascii.Error, ValueError):
            raise invalid_page_token() from None
        if not position or raw[:1] != _VERSION or raw[1 : 1 + _HASH_BYTES] != self._hash():
            raise invalid_page_token()
        return position

    def id_position(self, token: str) -> UUID | None:
        """Reads a token whose position is an id."""
        position = self.position(token)
        try:
            return UUID(position) if position else None
        except ValueError:
            raise invalid_page_token() from None

    def number_position(self, token: str) -> int:
        """Reads a token whose position is a number; 0 for the first page."""
        position = self.position(token)
        if not position:
            return 0
        if not (position.isascii() and position.isdigit() and 0 < int(position) < _SEQUENCE_LIMIT):
            raise invalid_page_token()
        return int(position)

    def _hash(self) -> bytes:
        asked = f"{self.method}\0{self.namespace}\0{self.subject}"
        return hashlib.blake2b(asked.encode(), digest_size=_HASH_BYTES).digest()


def invalid_page_token() -> InvalidPageToken:
    """Makes the error of a token that does not fit."""
    text = (
        "page_token was not given by this method for this request; "
        "send the last next_page_token with the other fields unchanged, or none to start again"
    )
    return InvalidPageToken(text, faults=[FieldFault("page_token", "INVALID_PAGE_TOKEN", text)])


def page_size(asked: int, default: int = PAGE_SIZE) -> int:
    """Returns how many items a page has at most."""
    return min(asked or default, PAGE_SIZE_LIMIT)


def cut_page(items: Sequence[Item], size: int) -> tuple[list[Item], bool]:
    """Cuts `items`, of which one more than `size` was read, to a page; answers also whether there is more after it.

    A page that would be larger than PAGE_LIMIT_BYTES ends early: of items that are more, those after the first with
    which they are need not have been read.
    """
    page: list[Item] = []
    room = PAGE_LIMIT_BYTES
    for item in items[:size]:
        room -= item.ByteSize()
        if room < 0 and page:
            break
        page.append(item)
    return page, len(items) > len(page)
