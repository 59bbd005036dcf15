"""Redirect URIs: where a browser may be sent with a code.

Owns what may be registered and how an answer is put into one; refuses plain http beyond this machine, fragments, users,
and schemes a browser acts on by itself. Compared as strings, never by pattern: an app registers each URI it uses.
https://www.rfc-editor.org/rfc/rfc9700#section-2.1, https://www.rfc-editor.org/rfc/rfc8252#section-7
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode, urlsplit

from gateway.errors import Unprocessable

MAX_URIS: Final = 20
_MAX_CHARACTERS: Final = 1_000
_URI: Final = re.compile(r"[!$%&'()*+,./0-9:;=?@A-Z\[\]_a-z~\-]+")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")  # what a page's policy can name
_PRIVATE_USE: Final = re.compile(r"[a-z][a-z0-9+\-]*(?:\.[a-z0-9+\-]+)+")  # RFC 8252 section 7.1: a reversed domain
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


def check_redirect_uri(uri: str) -> str:
    """``uri`` if it may be registered. Raises Unprocessable."""
    if len(uri) > _MAX_CHARACTERS or _URI.fullmatch(uri) is None:
        raise Unprocessable(f"a redirect URI is absolute, of at most {_MAX_CHARACTERS} characters, without fragment")
    try:
        parts = urlsplit(uri)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise Unprocessable("a redirect URI cannot be read") from None
    if _PRIVATE_USE.fullmatch(parts.scheme):
        return uri
    if parts.scheme not in ("https", "http") or not host or not _HOST.fullmatch(parts.netloc):
        raise Unprocessable("a redirect URI is https, or an app's own scheme, a reversed domain (com.example.app:/)")
    if parts.scheme == "http" and host not in LOOPBACK:
        raise Unprocessable("a redirect URI is https; plain http leads to this machine's loopback alone")
    return uri


def redirect(uri: str, parameters: Mapping[str, str | None]) -> str:
    """``uri`` with ``parameters`` added to its query; those that are None are left out."""
    joined = "&" if urlsplit(uri).query else "" if uri.endswith("?") else "?"
    return f"{uri}{joined}{urlencode({name: value for name, value in parameters.items() if value is not None})}"


def origin_of(uri: str) -> str | None:
    """The web origin a browser names for a page at ``uri``; None for an app's own scheme."""
    parts = urlsplit(uri)
    if parts.scheme not in ("https", "http"):
        return None
    default = {"https": ":443", "http": ":80"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(default)}"
