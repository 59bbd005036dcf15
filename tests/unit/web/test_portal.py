"""The portal's pure parts: own paths, forms, policies, names of devices."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UnsupportedMedia
from gateway.web.portal.pages import content_policy
from gateway.web.portal.people import device_name
from gateway.web.portal.session import fields_of, own_path

ORIGIN = "https://hospital.example"


@given(st.one_of(
    st.text(max_size=60), st.text(alphabet="/\\.:@?#%portal \t\n", max_size=30).map(lambda t: f"/portal{t}"),
    st.text(alphabet="/\\.:@?#%oauth\r", max_size=30).map(lambda t: f"/oauth{t}")))
def test_an_own_path_leads_nowhere_else(path: str) -> None:
    found = own_path(path)
    if found is None:
        return
    # As a browser reads it: tabs and newlines dropped, backslashes as slashes.
    target = urlsplit(urljoin(ORIGIN + "/portal", found.replace("\\", "/").translate({9: None, 10: None, 13: None})))
    assert f"{target.scheme}://{target.netloc}" == ORIGIN
    assert found.startswith(("/portal", "/oauth"))


def test_own_pages_are_own_paths() -> None:
    for path in ("/portal", "/portal/account", "/portal?x=1", "/oauth/authorize/abc_-1?x=%2F", "/portal/apps?a=b&c=d"):
        assert own_path(path) == path


@given(st.binary(max_size=300))
def test_any_body_is_a_form_or_refused(body: bytes) -> None:
    try:
        fields = fields_of(body)
    except UnsupportedMedia:
        return
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in fields.items())


def test_a_field_given_several_times_is_joined() -> None:
    assert fields_of(b"scope=a&scope=b&x=%20y&empty=") == {"scope": "a b", "x": " y", "empty": ""}


@pytest.mark.parametrize("source", ["", "'unsafe-inline'", "https://a.example; script-src *", "a b", "x\r\ny",
                                    "\u00e9"])
def test_no_source_breaks_out_of_the_policy(source: str) -> None:
    with pytest.raises(ValueError, match="source"):
        content_policy((source,))


def test_a_form_may_lead_where_the_page_says() -> None:
    assert "form-action 'self' https://app.example com.example.app:;" in content_policy(
        ("https://app.example", "com.example.app:"))


@given(st.text(max_size=200))
def test_of_a_user_agent_two_names_are_kept(agent: str) -> None:
    assert len(device_name(agent)) < 30


def test_browsers_are_known_by_their_names() -> None:
    edge = "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120 Safari/537.36 Edg/120"
    assert device_name(edge) == "Edge on Windows"
    assert device_name("curl/8") == "A browser"
