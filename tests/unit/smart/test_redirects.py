"""Which redirect URIs may be registered, and how an answer is put into one (RFC 9700 section 4.1, RFC 8252)."""

from __future__ import annotations

import pytest

from gateway.errors import Unprocessable
from gateway.smart.redirects import check_redirect_uri, is_registered, origin_of
from gateway.web.portal.pages import content_policy


@pytest.mark.parametrize("uri", [
    "https://app.example/after", "https://app.example:8443/after?a=b", "http://127.0.0.1:9/cb", "http://[::1]:80/cb",
    "http://localhost/", "com.example.app:/after", "https://xn--bcher-kva.example/", "https://my_host.example/"])
def test_what_a_browser_can_be_sent_to_is_taken_and_fits_a_page_policy(uri: str) -> None:
    assert check_redirect_uri(uri) == uri
    content_policy((origin_of(uri) or f"{uri.partition(':')[0]}:",))


@pytest.mark.parametrize("uri", [
    "https://app.example;script-src/cb", "https://a,b/", "https://app.example'/", "https://*.example/cb",
    "https://a%2eb/", "https://user@app.example/", "https://[app.example]/", "https:///cb", "https://app.example:x/",
    "https://app.example:/cb", "http://app.example/", "javascript:alert(1)", "https://app.example/#x", "data:,x"])
def test_what_no_host_is_called_is_refused_and_never_reaches_a_page_policy(uri: str) -> None:
    """The authorize screen names the host in its Content-Security-Policy."""
    with pytest.raises(Unprocessable):
        check_redirect_uri(uri)


@pytest.mark.parametrize(("registered", "uri"), [
    ("http://127.0.0.1/cb", "http://127.0.0.1:51004/cb"), ("http://127.0.0.1:80/cb", "http://127.0.0.1:65535/cb"),
    ("http://127.0.0.1:9/cb", "http://127.0.0.1/cb"), ("http://[::1]/cb?a=b", "http://[::1]:1/cb?a=b"),
    ("http://127.0.0.1", "http://127.0.0.1:8")])
def test_a_native_app_answers_on_the_port_its_system_gave_it(registered: str, uri: str) -> None:
    """RFC 8252 section 7.3: any port of a loopback address, which the app learns when it starts."""
    assert is_registered(uri, ("https://app.example/", registered))


@pytest.mark.parametrize(("registered", "uri"), [
    ("http://localhost/cb", "http://localhost:51004/cb"),  # section 8.3: a name may lead elsewhere
    ("http://127.0.0.1/cb", "http://[::1]:51004/cb"), ("http://127.0.0.1/cb", "http://127.0.0.2:51004/cb"),
    ("http://127.0.0.1/cb", "http://127.0.0.1:51004/cb/"), ("http://127.0.0.1/cb", "http://127.0.0.1:51004/CB"),
    ("http://127.0.0.1/cb", "http://127.0.0.1:51004/cb?x=1"), ("http://127.0.0.1/cb", "http://127.0.0.1:/cb"),
    ("http://127.0.0.1/cb", "http://127.0.0.1:0/cb"), ("http://127.0.0.1/cb", "http://127.0.0.1:065/cb"),
    ("http://127.0.0.1/cb", "http://127.0.0.1:65536/cb"), ("http://127.0.0.1/cb", "https://127.0.0.1:51004/cb"),
    ("http://127.0.0.1/cb", "http://127.0.0.1:51004@thief.example/cb"), ("http://127.0.0.1/cb", "http://127.1:9/cb"),
    ("http://127.0.0.1/cb", "http://127.0.0.1:1\n/cb"), ("http://127.0.0.1/cb", "http://127.0.0.1.thief.example/cb"),
    ("http://127.0.0.1/cb", "HTTP://127.0.0.1:9/cb"), ("https://app.example/cb", "https://app.example:8443/cb"),
    ("https://127.0.0.1/cb", "https://127.0.0.1:9/cb")])
def test_every_other_part_is_compared_exactly(registered: str, uri: str) -> None:
    """RFC 9700 section 4.1.3."""
    assert is_registered(registered, (registered,))
    assert not is_registered(uri, (registered,))
