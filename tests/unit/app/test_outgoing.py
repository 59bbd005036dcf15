"""Where requests of the gateway may go: SSRF by literal, by name, by rebinding, by disguise and by redirect."""

from __future__ import annotations

import asyncio
import ipaddress
import re

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Unavailable
from gateway.outgoing import AsyncPinned, DestinationRefused, Pinned, Rule, check, inner, is_public, pinned
from tests.running import REPOSITORY

PUBLIC = Rule(what="it", public=True)
INSIDE = ["10.0.0.1", "127.0.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "192.168.1.1", "172.16.0.1",  # noqa: S104
          "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:10.0.0.1",
          "::ffff:169.254.169.254", "::10.0.0.1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1",
          "2002:a00:1::", "2002:7f00:1::1", "2001:0:a00:1::1", "fd00:ec2::254"]


def in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("address", INSIDE)
def test_no_address_within_is_reached_by_literal_or_by_name(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(DestinationRefused):
        check(PUBLIC, f"https://{in_url(address)}/")
    with pytest.raises(DestinationRefused):
        pinned(PUBLIC, check(PUBLIC, "https://a.example/"), lambda *_: ["93.184.216.34", address])


@given(st.integers(0, 2**32 - 1))
def test_every_disguise_of_an_ipv4_address_is_judged_as_that_address(number: int) -> None:
    plain = ipaddress.IPv4Address(number)
    for disguise in (f"::ffff:{plain}", str(ipaddress.IPv6Address((0x64FF9B << 96) | number)),
                     str(ipaddress.IPv6Address((0x2002 << 112) | (number << 80)))):
        found = ipaddress.ip_address(disguise)
        assert inner(found) == plain
        assert is_public(found) == is_public(plain)


@pytest.mark.parametrize("url", [
    "http://a.example/", "ftp://a.example/", "file:///etc/passwd", "gopher://a.example/", "https://", "//a.example/",
    "https://u:p@a.example/", "https://u@a.example/", "https://a.example/#x", "https://a.example:22/",
    "https://a.example:25/", "https://a.example:99999/", "https://a .example/", "https://a.example\\@b/",
    "https://a.example/\r\nX: y", "https://a.example/\x00", "https://\u24d0.example/",
    "https://a.example/" + "a" * 2_000,
    "https://0x7f000001/", "https://2130706433/", "https://127.1/", "https://0177.0.0.1/", "https://localhost/"])
def test_what_is_no_plain_https_url_goes_nowhere(url: str) -> None:
    def by_the_system(host: str, _: int) -> list[str]:
        """As inet_aton reads what looks like a number."""
        return ["127.0.0.1"] if re.fullmatch(r"[0-9a-fx.]+|localhost", host) else ["93.184.216.34"]

    with pytest.raises(DestinationRefused):
        pinned(PUBLIC, check(PUBLIC, url), by_the_system)


def test_a_name_that_changes_its_meaning_is_connected_to_where_it_was_checked() -> None:
    """DNS rebinding: the resolver is asked once for each request, and what it said is what is connected to."""
    answers, reached = ["93.184.216.34", "127.0.0.1"], []

    def network(request: httpx.Request) -> httpx.Response:
        reached.append((request.url.host, request.headers["host"], request.extensions["sni_hostname"]))
        return httpx.Response(302, headers={"Location": "http://169.254.169.254/"})

    transport = Pinned(PUBLIC, resolving=lambda *_: [answers.pop(0)], onward=httpx.MockTransport(network))
    with httpx.Client(transport=transport, trust_env=False) as client:
        assert client.get("https://a.example/x").status_code == 302
        with pytest.raises(DestinationRefused):
            client.get("https://a.example/x")
    assert reached == [("93.184.216.34", "a.example", "a.example")]


def test_a_client_that_would_follow_a_redirect_is_stopped_at_it() -> None:
    def network(_: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"Location": "http://169.254.169.254/"})

    async def story() -> None:
        transport = AsyncPinned(PUBLIC, resolving=lambda *_: ["93.184.216.34"], onward=httpx.MockTransport(network))
        async with httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=True) as client:
            with pytest.raises(DestinationRefused):
                await client.get("https://a.example/x")
    asyncio.run(story())


def test_listed_hosts_alone_are_reached_and_within_only_where_that_is_meant() -> None:
    listed = Rule(what="it", listed=("https://files.example:443", "http://10.0.0.8:9000"))
    assert check(listed, "https://files.example/a")
    assert check(listed, "http://10.0.0.8:9000/a")
    for url in ("https://other.example/", "http://files.example/", "https://files.example:444/", "http://10.0.0.8/"):
        with pytest.raises(DestinationRefused):
            check(listed, url)
    named = check(listed, "https://files.example/a")
    assert pinned(listed, named, lambda *_: ["10.0.0.8"]) == "10.0.0.8"
    for address in ("10.0.0.9", "127.0.0.1", "169.254.169.254"):
        with pytest.raises(DestinationRefused):
            pinned(listed, named, lambda *_, address=address: [address])
    meant = Rule(what="it", listed=("https://files.example:443",), inside=True)
    assert pinned(meant, named, lambda *_: ["10.0.0.9"]) == "10.0.0.9"
    for address in ("169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0"):  # noqa: S104
        with pytest.raises(DestinationRefused):
            pinned(meant, named, lambda *_, address=address: [address])


def test_a_name_without_an_address_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        pinned(PUBLIC, check(PUBLIC, "https://a.example/"), lambda *_: [])


def test_every_client_of_the_gateway_is_pinned_or_goes_to_what_the_operator_set() -> None:
    """Chain and block store are settings; everything else has its transport from ``outgoing``."""
    own = {"ledger/ethereum_node.py", "ledger/ethereum_rpc.py", "ledger/verify_rpc.py", "store/ipfs.py", "probes.py",
           "preflight.py", "status.py", "supervisor.py", "outgoing.py"}
    opening = re.compile(r"httpx\.(?:Async)?Client\(|OAuth2Client\(|urlopen\(|requests\.(?:get|post)\(|"
                         r"create_connection\(")
    for file in sorted((REPOSITORY / "gateway").rglob("*.py")):
        name = str(file.relative_to(REPOSITORY / "gateway"))
        if name not in own and opening.search(text := file.read_text()):
            assert "outgoing" in text, name
            assert "follow_redirects=True" not in text, name
