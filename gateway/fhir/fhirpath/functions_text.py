"""FHIRPath functions on text. http://hl7.org/fhirpath/N1/#string-manipulation

Empty input gives empty; more than one item is an error. Regular expressions are Python's, whose
common ground with the N1 dialect covers what R4's definitions use.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence

from gateway.errors import FHIRPathError
from gateway.fhir.fhirpath.evaluation import Env, Evaluator, Function, integer_argument, text_argument
from gateway.fhir.fhirpath.node import Item
from gateway.fhir.fhirpath.operators import as_text, singleton, system

_BARE_QUOTE = re.compile(r'(?<!\\)"')


def text_of(items: list[Item]) -> str | None:
    """The one text of the input, None of nothing. FHIRPathError for what is not text."""
    item = singleton(items)
    if item is None:
        return None
    value = system(item)
    if type(value) is str:
        return value
    text = as_text(item)
    if value is None:
        return None
    if text is None:
        raise FHIRPathError("FHIRPath: a text expected")
    return text


def pattern(text: str, *, whole: bool = False) -> re.Pattern[str]:
    """A compiled regular expression; FHIRPathError where it is none."""
    try:
        return re.compile(f"(?:{text})\\Z" if whole else text, re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise FHIRPathError(f"FHIRPath: {text!r} is no regular expression") from error


def _with_argument(apply: Callable[[str, str], Item]) -> Function:
    def function(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
        text, given = text_of(items), text_argument(args, 0, this, env)
        return [] if text is None or given is None else [apply(text, given)]

    return function


def _alone(apply: Callable[[str], Item]) -> Function:
    def function(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
        text = text_of(items)
        return [] if text is None else [apply(text)]

    return function


def _substring(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    text, start = text_of(items), integer_argument(args, 0, this, env)
    if text is None or start is None or not 0 <= start < len(text):
        return []
    length = integer_argument(args, 1, this, env)
    return [text[start:] if length is None else text[start : start + max(0, length)]]


def _replace(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    text, old, new = text_of(items), text_argument(args, 0, this, env), text_argument(args, 1, this, env)
    return [] if text is None or old is None or new is None else [text.replace(old, new)]


def _replace_matches(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    text, old, new = text_of(items), text_argument(args, 0, this, env), text_argument(args, 1, this, env)
    if text is None or old is None or new is None:
        return []
    if not old:
        return [text]
    found = re.sub(r"\$(\d+|\{(\w+)\})", lambda m: rf"\g<{m.group(2) or m.group(1)}>", new)
    try:
        return [pattern(old).sub(found, text)]
    except (re.error, IndexError) as error:
        raise FHIRPathError(f"FHIRPath: {new!r} does not fit the expression it replaces") from error


def _split(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    text, at = text_of(items), text_argument(args, 0, this, env)
    return [] if text is None or at is None else list(text.split(at)) if at else list(text)


def _to_chars(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return list(text_of(items) or "")


def _encode(text: str, scheme: str) -> str:
    raw = text.encode()
    if scheme == "hex":
        return raw.hex()
    if scheme == "base64":
        return base64.b64encode(raw).decode()
    if scheme == "urlbase64":
        return base64.urlsafe_b64encode(raw).decode()
    raise FHIRPathError(f"FHIRPath: no encoding called {scheme!r}")


def _decode(text: str, scheme: str) -> str:
    try:
        if scheme == "hex":
            return bytes.fromhex(text).decode()
        if scheme == "base64":
            return base64.b64decode(text, validate=True).decode()
        if scheme == "urlbase64":
            return base64.urlsafe_b64decode(text).decode()
    except (ValueError, binascii.Error) as error:
        raise FHIRPathError(f"FHIRPath: the text is not {scheme}") from error
    raise FHIRPathError(f"FHIRPath: no encoding called {scheme!r}")


def _escape(text: str, target: str) -> str:
    if target == "html":
        return html.escape(text).replace("&#x27;", "&#39;")
    if target == "json":
        return json.dumps(text, ensure_ascii=False)[1:-1]
    raise FHIRPathError(f"FHIRPath: no escaping called {target!r}")


def _unescape(text: str, target: str) -> str:
    if target == "html":
        return html.unescape(text)
    if target == "json":
        quoted = '"' + _BARE_QUOTE.sub(r'\\"', text) + '"'
        try:
            return str(json.loads(quoted, strict=False))
        except ValueError as error:
            raise FHIRPathError("FHIRPath: the text is not escaped JSON") from error
    raise FHIRPathError(f"FHIRPath: no escaping called {target!r}")


TEXT_FUNCTIONS: Mapping[str, tuple[int, int, Function]] = {
    "indexOf": (1, 1, _with_argument(lambda text, part: text.find(part))),
    "lastIndexOf": (1, 1, _with_argument(lambda text, part: text.rfind(part))),
    "substring": (1, 2, _substring),
    "startsWith": (1, 1, _with_argument(lambda text, part: text.startswith(part))),
    "endsWith": (1, 1, _with_argument(lambda text, part: text.endswith(part))),
    "contains": (1, 1, _with_argument(lambda text, part: part in text)),
    "upper": (0, 0, _alone(str.upper)),
    "lower": (0, 0, _alone(str.lower)),
    "trim": (0, 0, _alone(str.strip)),
    "replace": (2, 2, _replace),
    "matches": (1, 2, _with_argument(lambda text, regex: pattern(regex).search(text) is not None)),
    "matchesFull": (1, 2, _with_argument(lambda text, regex: pattern(regex, whole=True).match(text) is not None)),
    "replaceMatches": (2, 3, _replace_matches),
    "length": (0, 0, _alone(len)),
    "toChars": (0, 0, _to_chars),
    "split": (1, 1, _split),
    "encode": (1, 1, _with_argument(_encode)),
    "decode": (1, 1, _with_argument(_decode)),
    "escape": (1, 1, _with_argument(_escape)),
    "unescape": (1, 1, _with_argument(_unescape)),
}
