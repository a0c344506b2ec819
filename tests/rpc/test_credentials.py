"""Credentials: what the metadata of a call says of its caller."""

from __future__ import annotations

import pytest

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import InvalidRequest
from orchestrator.security.credentials import DevelopmentAuthenticator, read_channel, read_principal, read_traceparent

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{PARENT}-01"


def test_who_names_no_principal_is_anonymous() -> None:
    caller = DevelopmentAuthenticator().authenticate([("authorization", "Bearer x"), ("namespace", "other")])
    assert caller == Caller("default", "anonymous", "grpc", "")


@pytest.mark.parametrize("principal", ["ada", "Ada <ada@example.org>", "~", "x" * 128])
def test_everybody_is_taken_at_their_word(principal: str) -> None:
    caller = DevelopmentAuthenticator().authenticate([("baton-principal", principal)])
    assert caller == Caller("default", principal, "grpc", "")


@pytest.mark.parametrize("principal", ["", " ", " ada", "ada ", "a\nb", "a\x7f", "ä", "x" * 129])
def test_other_principals_are_refused(principal: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_principal([("baton-principal", principal)])
    assert caught.value.faults[0].path == 'metadata["baton-principal"]'


def test_two_principals_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        read_principal([("baton-principal", "ada"), ("baton-principal", "eve")])


@pytest.mark.parametrize("channel", ["cli", "a", "web-2", "x" * 32])
def test_channels(channel: str) -> None:
    assert read_channel([("baton-channel", channel)]) == channel


@pytest.mark.parametrize("channel", ["", "A", "a b", "x" * 33, "a\n", "ä", "a_b"])
def test_other_channels_are_refused(channel: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_channel([("baton-channel", channel)])
    assert caught.value.faults[0].path == 'metadata["baton-channel"]'


def test_two_channels_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        read_channel([("baton-channel", "cli"), ("baton-channel", "web")])


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (VALID, VALID),
        (f" {VALID} ", VALID),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", VALID),
        (f"01-{TRACE}-{PARENT}-00", f"00-{TRACE}-{PARENT}-00"),
        (VALID + "-more", ""),
        (f"ff-{TRACE}-{PARENT}-01", ""),
        (f"00-{'0' * 32}-{PARENT}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (VALID.upper(), ""),
        (VALID[:-1], ""),
        ("", ""),
        ("00-\u0660" + TRACE[1:], ""),
    ],
)
def test_traceparents(value: str, read: str) -> None:
    assert read_traceparent([("traceparent", value)]) == read


def test_two_traceparents_are_none() -> None:
    assert read_traceparent([("traceparent", VALID)] * 2) == ""
    assert read_traceparent([("traceparent-bin", VALID), ("traceparent", b"x")]) == ""


def test_a_namespace_is_one_that_the_server_has() -> None:
    authenticator = DevelopmentAuthenticator(("gold", "bronze"))
    assert authenticator.authenticate([]).namespace == "default"
    for namespace in ("default", "gold", "bronze"):
        assert authenticator.authenticate([("baton-namespace", namespace)]).namespace == namespace


@pytest.mark.parametrize("namespaces", [["silver"], [""], ["Gold"], ["gold", "gold"], ["gold,bronze"]])
def test_other_namespaces_are_refused(namespaces: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        DevelopmentAuthenticator(("gold",)).authenticate([("baton-namespace", each) for each in namespaces])
    assert caught.value.faults[0].path == 'metadata["baton-namespace"]'
    assert "BATON_NAMESPACES" in str(caught.value)
