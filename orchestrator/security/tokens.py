"""Tokens that replicas sign and any of them verifies. Step tokens: what a worker holds to act on behalf of the attempt
it was called for. Relay tokens: what a replica shows another to reach a worker that is attached there. Forward tokens:
what a replica shows another to say who makes a request that it sends on.

A step token is `v1.BODY.MAC`, both base64url: the body names namespace, run, step, attempt and epoch; the MAC is
HMAC-SHA256 under the key that all replicas share. It names an attempt and no secret; the epoch makes it worthless once
the run has another owner or the attempt has ended, which the one who verifies must look up.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from uuid import UUID

from orchestrator.domain.caller import Caller, StepClaim

VERSION = "v1"
MAX_TOKEN_CHARACTERS = 1_024
MAX_FORWARD_CHARACTERS = 4_096

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class TokenInvalid(Exception):
    """The text is not a token that this key signed."""


class TokenSigner:
    """Signs and verifies step tokens with one key of 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._mac = hmac.new(key, digestmod=hashlib.sha256)

    def sign(self, claim: StepClaim) -> str:
        """Makes the token of a claim."""
        fields = (claim.namespace, claim.run_id.hex, claim.step, str(claim.attempt), str(claim.epoch))
        body = "\0".join(fields).encode()
        return f"{VERSION}.{_encode(body)}.{_encode(self._sum(body))}"

    def verify(self, token: str) -> StepClaim:
        """Reads a token back. Errors: TokenInvalid."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise TokenInvalid("the step token is too long")
        try:
            version, body_text, mac_text = token.split(".")
            body, mac = _decode(body_text), _decode(mac_text)
            if version != VERSION or not hmac.compare_digest(mac, self._sum(body)):
                raise TokenInvalid("the step token is not signed by this server")
            namespace, run_id, step, attempt, epoch = body.decode().split("\0")
            return StepClaim(namespace, UUID(hex=run_id), step, int(attempt), int(epoch))
        except (ValueError, binascii.Error) as error:
            raise TokenInvalid("the step token cannot be read") from error

    def sign_relay(self, address: str) -> str:
        """Makes what a replica shows another to be relayed to the worker that is attached there as `address`."""
        return f"{VERSION}.{_encode(self._sum(_relay_body(address)))}"

    def verify_relay(self, address: str, token: str) -> bool:
        """Tells whether a replica made this token for `address`."""
        return hmac.compare_digest(token.encode(), self.sign_relay(address).encode())

    def sign_forward(self, caller: Caller, method: str, request: bytes, expire_time: int) -> str:
        """Makes what stands for `caller` until `expire_time`, in a request that one replica sends to another."""
        said = (caller.namespace, caller.principal, caller.channel, caller.traceparent, expire_time)
        body = json.dumps(said).encode()
        return f"{VERSION}.{_encode(body)}.{_encode(self._sum(_forward_body(body, method, request)))}"

    def verify_forward(self, token: str, method: str, request: bytes, now: int) -> Caller | None:
        """Reads the caller; None where no replica signed the token for this request, or its time is over."""
        if len(token) > MAX_FORWARD_CHARACTERS:
            return None
        try:
            version, body_text, mac_text = token.split(".")
            body, mac = _decode(body_text), _decode(mac_text)
            if version != VERSION or not hmac.compare_digest(mac, self._sum(_forward_body(body, method, request))):
                return None
            *said, expire_time = json.loads(body)
            return Caller(*said) if now < expire_time else None
        except (ValueError, TypeError, binascii.Error):
            return None

    def _sum(self, body: bytes) -> bytes:
        mac = self._mac.copy()
        mac.update(body)
        return mac.digest()


def _relay_body(address: str) -> bytes:
    # A step token's body has four NULs: neither can pass for the other.
    return f"relay\0{address}".encode()


def _forward_body(said: bytes, method: str, request: bytes) -> bytes:
    # JSON holds no NUL, and a digest is of one length: no other token's body can be equal.
    return b"forward\0" + said + b"\0" + method.encode() + b"\0" + hashlib.sha256(request).hexdigest().encode()


def _encode(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).translate(_URL_SAFE).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
