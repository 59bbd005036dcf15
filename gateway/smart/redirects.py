"""Redirect URIs: where a browser may be sent with a code.

Owns what may be registered and how an answer is put into one; refuses plain http beyond this machine, fragments, users,
and schemes a browser acts on by itself. Compared as strings, never by pattern: an app registers each URI it uses. A
native app's loopback address alone may come with any port, which its system hands out when it starts.
https://www.rfc-editor.org/rfc/rfc9700#section-2.1, https://www.rfc-editor.org/rfc/rfc8252#section-7
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlencode, urlsplit

from gateway.errors import Unprocessable

MAX_URIS: Final = 20
_MAX_CHARACTERS: Final = 1_000
_MAX_PORT: Final = 65_535
_URI: Final = re.compile(r"[!$%&'()*+,./0-9:;=?@A-Z\[\]_a-z~\-]+")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")  # what a page's policy can name
_PRIVATE_USE: Final = re.compile(r"[a-z][a-z0-9+\-]*(?:\.[a-z0-9+\-]+)+")  # RFC 8252 section 7.1: a reversed domain
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
# RFC 8252 section 7.3: by address alone (section 8.3: a name may be resolved to lead elsewhere).
_ANY_PORT: Final = re.compile(r"(?P<host>http://(?:127\.0\.0\.1|\[::1\]))(?::(?P<port>[1-9][0-9]{0,4}))?(?P<rest>[/?].*)?")


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


def is_registered(uri: str, registered: Iterable[str]) -> bool:
    """Whether an app that registered these may have its answer sent to ``uri``."""
    known = frozenset(registered)
    if uri in known:
        return True
    portless = _without_port(uri)
    return portless is not None and any(portless == _without_port(one) for one in known)


def is_native(uri: str) -> bool:
    """Whether it leads to a program on the person's own machine, which nothing tells from another program there."""
    return not uri.startswith("https://")


def redirect(uri: str, parameters: Mapping[str, str | None]) -> str:
    """``uri`` with ``parameters`` added to its query; those that are None are left out."""
    joined = "&" if urlsplit(uri).query else "" if uri.endswith("?") else "?"
    return f"{uri}{joined}{urlencode({name: value for name, value in parameters.items() if value is not None})}"


def _without_port(uri: str) -> str | None:
    """A loopback URI without its port; None for any other."""
    match = _ANY_PORT.fullmatch(uri)
    if match is None or int(match["port"] or 0) > _MAX_PORT:
        return None
    return match["host"] + (match["rest"] or "")


def origin_of(uri: str) -> str | None:
    """The web origin a browser names for a page at ``uri``; None for an app's own scheme."""
    parts = urlsplit(uri)
    if parts.scheme not in ("https", "http"):
        return None
    default = {"https": ":443", "http": ":80"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(default)}"
