"""Which redirect URIs may be registered, and how an answer is put into one (RFC 9700 section 4.1, RFC 8252)."""

from __future__ import annotations

import pytest

from gateway.errors import Unprocessable
from gateway.smart.redirects import check_redirect_uri, origin_of
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
