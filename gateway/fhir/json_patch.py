"""JSON Patch: a list of operations applied to a JSON value, all or none.

Owns JSON Pointer and the six operations; refuses an operation it does not know, a pointer that leads nowhere and a
test that fails, naming the operation and never the values. Decimals stay as they were written; two numbers are equal
when their values are. https://www.rfc-editor.org/rfc/rfc6902, https://www.rfc-editor.org/rfc/rfc6901
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from gateway.errors import Issue, Malformed, TooCostly, Unprocessable
from gateway.fhir.resource import DECIMAL, copy

Json = Any  # a JSON value as parsed

OPERATIONS_MAX = 1_000
_COPIED_MAX = 100_000
"""Values all copies of one patch may make together: each may double what the one before left."""
_TEXT_PER_VALUE = 128
"""So many characters of a text count as one more value."""
_DEPTH_MAX = 200
"""Nesting of resource JSON."""
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_ESCAPE = re.compile(r"~(?![01])")
_WANTS = {"add": ("value",), "remove": (), "replace": ("value",), "move": ("from",), "copy": ("from",),
          "test": ("value",)}


class _Nowhere(Exception):  # control flow: apply says which operation it was
    pass


def apply(document: Json, patch: Json) -> Json:
    """The patched document; ``document`` itself is not changed.

    Raises Malformed for what is no JSON Patch, Unprocessable where an operation cannot be done, TooCostly.
    """
    if type(patch) is not list:
        raise Malformed("a JSON Patch is a list of operations", code="structure", expression="patch")
    if len(patch) > OPERATIONS_MAX:
        raise TooCostly(f"a patch holds at most {OPERATIONS_MAX} operations", code="too-costly", expression="patch")
    operations = [_operation(raw, f"patch[{place}]") for place, raw in enumerate(patch)]
    document = copy(document)
    copied = 0
    for place, (name, path, source, value) in enumerate(operations):
        at = f"patch[{place}]"
        try:
            if name == "copy":
                value = _found(document, source)
                copied += _size(value, len(path))
                if copied > _COPIED_MAX:
                    raise TooCostly(f"the copies of one patch make at most {_COPIED_MAX} values", code="too-costly",
                                    expression=at)
                value = copy(value)
            document = _done(document, name, path, source, value)
        except _Nowhere as error:
            raise Unprocessable(Issue("error", "processing", f"{name}: {error}", at)) from None
    return document


def _operation(raw: Json, at: str) -> tuple[str, tuple[str, ...], tuple[str, ...], Json]:
    if type(raw) is not dict:
        raise Malformed("an operation is an object", code="structure", expression=at)
    name = raw.get("op")
    if type(name) is not str or name not in _WANTS:
        raise Malformed(f"op is one of {', '.join(_WANTS)}", code="value", expression=f"{at}.op")
    for member in ("path", *_WANTS[name]):
        if member not in raw:
            raise Malformed(f"{name} needs {member!r}", code="required", expression=f"{at}.{member}")
    path = _pointer(raw["path"], f"{at}.path")
    source = _pointer(raw["from"], f"{at}.from") if "from" in _WANTS[name] else ()
    if name == "move" and source == path[:len(source)] and source != path:
        raise Unprocessable(Issue("error", "processing", "move: a value cannot be moved into itself", at))
    return name, path, source, copy(raw.get("value"))


def _pointer(text: Json, at: str) -> tuple[str, ...]:
    if type(text) is not str or (text and text[0] != "/") or _ESCAPE.search(text):
        raise Malformed("not a JSON Pointer", code="value", expression=at)
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:])


def _done(document: Json, name: str, path: tuple[str, ...], source: tuple[str, ...], value: Json) -> Json:
    if name == "test":
        if not equal(_found(document, path), value):
            raise _Nowhere("the value is another")
        return document
    if name == "move":
        value = _found(document, source)
        if source == path:
            return document
        document = _removed(document, source)
    if name == "remove":
        return _removed(document, path)
    if not path:
        return value
    holder, last = _found(document, path[:-1]), path[-1]
    if type(holder) is dict:
        if name == "replace" and last not in holder:
            raise _Nowhere("there is nothing to replace")
        holder[last] = value
    elif type(holder) is list:
        if name == "replace":
            holder[_index(holder, last)] = value
        else:
            holder.insert(len(holder) if last == "-" else _index(holder, last, beyond=1), value)
    else:
        raise _Nowhere("the path goes through a value that is no object and no list")
    return document


def _removed(document: Json, path: tuple[str, ...]) -> Json:
    if not path:
        return None
    holder, last = _found(document, path[:-1]), path[-1]
    if type(holder) is dict and last in holder:
        del holder[last]
    elif type(holder) is list:
        del holder[_index(holder, last)]
    else:
        raise _Nowhere("there is nothing at the path")
    return document


def _found(value: Json, path: tuple[str, ...]) -> Json:
    for token in path:
        if type(value) is dict and token in value:
            value = value[token]
        elif type(value) is list:
            value = value[_index(value, token)]
        else:
            raise _Nowhere("the path leads nowhere")
    return value


def _index(holder: list[Json], token: str, *, beyond: int = 0) -> int:
    if not _INDEX.fullmatch(token):
        raise _Nowhere("a place in a list is a number")
    if int(token) >= len(holder) + beyond:
        raise _Nowhere("the list is shorter")
    return int(token)


def _size(value: Json, depth: int) -> int:
    """How many values there are in one that is to stand at ``depth``, itself included."""
    if depth > _DEPTH_MAX:
        raise _Nowhere(f"the value would be nested deeper than {_DEPTH_MAX}")
    if type(value) is dict or type(value) is list:
        return 1 + sum(_size(item, depth + 1) for item in (value.values() if type(value) is dict else value))
    return 1 + len(value) // _TEXT_PER_VALUE if type(value) is str else 1


def equal(one: Json, other: Json) -> bool:
    """Equality as RFC 6902 4.6 has it: numbers by value, objects whatever their order."""
    if type(one) is dict or type(other) is dict:
        return type(one) is type(other) and one.keys() == other.keys() and all(
            equal(value, other[key]) for key, value in one.items())
    if type(one) is list or type(other) is list:
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    first, second = _number(one), _number(other)
    if first is None or second is None:
        return type(one) is type(other) and bool(one == other)
    return first == second


def _number(value: Json) -> Decimal | None:
    if type(value) is int:
        return Decimal(value)
    if type(value) is not DECIMAL:
        return None
    try:
        return Decimal(bytes(value).decode())
    except InvalidOperation:  # an exponent beyond what can be compared
        return None
