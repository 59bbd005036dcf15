"""Where Kubo's RPC may be: loopback, or what the operator allows, never public and plain."""

from __future__ import annotations

import pytest

from gateway.errors import Misconfigured
from gateway.store.ipfs_address import ApiAddress


@pytest.mark.parametrize(("text", "url", "multiaddr"), [
    ("/ip4/127.0.0.1/tcp/5001", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
    ("/ip4/127.0.0.1/tcp/5001/http", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
    ("http://127.0.0.1:5001", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
    ("http://127.0.0.1:5001/", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
    ("http://localhost:5001", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
    ("/dns/localhost/tcp/5001", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
    ("/ip6/::1/tcp/5001", "http://[::1]:5001", "/ip6/::1/tcp/5001/http"),
    ("https://[::1]:5001", "https://[::1]:5001", "/ip6/::1/tcp/5001/https"),
])
def test_loopback_is_read_in_both_forms(text: str, url: str, multiaddr: str) -> None:
    address = ApiAddress.parse(text, allow_remote=False)
    assert (address.url, address.multiaddr) == (url, multiaddr)


REMOTE = ["http://10.1.2.3:5001", "/ip4/192.168.1.4/tcp/5001", "http://ipfs:5001", "/dns/ipfs.internal/tcp/5001",
          "https://203.0.114.9:443", "/ip6/fd00::7/tcp/5001"]


@pytest.mark.parametrize("text", REMOTE)
def test_another_machine_is_refused_unless_allowed(text: str) -> None:
    with pytest.raises(Misconfigured, match="not loopback"):
        ApiAddress.parse(text, allow_remote=False)
    ApiAddress.parse(text, allow_remote=True)


@pytest.mark.parametrize("text", [
    "http://8.8.8.8:5001", "/ip4/8.8.8.8/tcp/5001", "/ip6/2001:4860:4860::8888/tcp/5001",
    "http://0.0.0.0:5001", "/ip6/::/tcp/5001",
])
def test_a_public_plain_or_unspecified_address_is_refused_even_then(text: str) -> None:
    with pytest.raises(Misconfigured):
        ApiAddress.parse(text, allow_remote=True)


@pytest.mark.parametrize("text", [
    "", "127.0.0.1:5001", "ftp://127.0.0.1:5001", "http://user:pass@127.0.0.1:5001", "http://127.0.0.1:5001/api/v0",
    "http://127.0.0.1:5001?x=1", "/unix/run/kubo.sock", "/ip4/127.0.0.1/udp/5001", "/ip4/127.0.0.1/tcp/99999",
    "http://127.0.0.1:0", "/dns/-/tcp/5001", "http://127.0.0.1:5001\nhttp://8.8.8.8",
])
def test_anything_else_is_refused_with_the_form_to_use(text: str) -> None:
    with pytest.raises(Misconfigured):
        ApiAddress.parse(text, allow_remote=True)
