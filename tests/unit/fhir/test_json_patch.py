"""JSON Patch as a pure rule. https://www.rfc-editor.org/rfc/rfc6902"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InputRefused, Malformed, TooCostly, Unprocessable
from gateway.fhir.json_patch import apply, equal
from gateway.fhir.resource import parse_json, serialise
from tests.shared_data import SHARED, needs_shared

CASES: list[dict[str, Any]] = [] if SHARED is None else json.loads((SHARED / "json-patch" / "tests.json").read_text())
values = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab/~", max_size=3),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab/~", max_size=2), inner,
                                                                                  max_size=3), max_leaves=8)
pointers = st.lists(st.sampled_from(["a", "b", "0", "1", "-", "~0", "~1", ""]), max_size=3).map(
    lambda tokens: "".join("/" + token for token in tokens))
operations = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]), "path": pointers},
    optional={"from": pointers, "value": values})


@needs_shared
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.get("comment", "unnamed"))
def test_the_public_suite(case: dict[str, Any]) -> None:
    document, patch = (parse_json(orjson.dumps(case[name])) for name in ("doc", "patch"))
    if "duplicate ops" in case.get("comment", "") or "A.13" in case.get("comment", ""):
        with pytest.raises(Malformed):  # the text has two "op" members: no parser of ours lets it in
            parse_json(b'[{"op":"add","op":"remove","path":"/baz","value":"qux"}]')
    elif "error" in case:
        with pytest.raises(InputRefused):
            apply(document, patch)
    else:
        assert apply(document, patch) == case.get("expected", case["doc"])


def test_decimals_keep_their_text_wherever_they_go() -> None:
    document = parse_json(b'{"a":1.10,"b":[0.0100]}')
    patch = parse_json(b'[{"op":"move","from":"/a","path":"/b/-"},{"op":"copy","from":"/b/0","path":"/c"},'
                       b'{"op":"add","path":"/d","value":1.0E-22},{"op":"test","path":"/c","value":0.01}]')
    assert serialise(apply(document, patch)) == b'{"b":[0.0100,1.10],"c":0.0100,"d":1.0E-22}'
    assert serialise(document) == b'{"a":1.10,"b":[0.0100]}'


@pytest.mark.parametrize(("one", "other", "same"), [
    (b"1", b"1.0", True), (b"1e2", b"100", True), (b"0", b"false", False), (b"1", b"true", False),
    (b'"1"', b"1", False), (b"[]", b"{}", False), (b"null", b"0", False), (b"-0", b"0", True)])
def test_numbers_are_equal_by_value_and_to_nothing_else(one: bytes, other: bytes, same: bool) -> None:
    assert equal(parse_json(one), parse_json(other)) is same


@pytest.mark.parametrize("patch", [
    {}, "x", None, [1], [{}], [{"op": "add"}], [{"op": "add", "path": "a", "value": 1}],
    [{"op": "add", "path": "/~2", "value": 1}], [{"op": "add", "path": 1, "value": 1}], [{"op": ["add"], "path": "/a"}],
    [{"op": "move", "path": "/a"}]])
def test_what_is_no_patch_is_malformed(patch: Any) -> None:
    with pytest.raises(Malformed):
        apply({"a": 1}, patch)


def test_a_value_is_not_moved_into_itself() -> None:
    with pytest.raises(Unprocessable):
        apply({"a": {"b": 1}}, [{"op": "move", "from": "/a", "path": "/a/b"}])


def test_a_patch_that_doubles_itself_ends_at_a_limit() -> None:
    double = [{"op": "copy", "from": "", "path": f"/a{number}"} for number in range(200)]
    with pytest.raises(TooCostly, match="copies"):
        apply({"a": 1}, double)
    with pytest.raises(TooCostly, match="copies"):
        apply({"a": "x" * 1_000_000, "b": []}, [{"op": "copy", "from": "/a", "path": "/b/-"}] * 300)
    with pytest.raises(TooCostly, match="operations"):
        apply({}, [{"op": "test", "path": "", "value": {}}] * 1_001)


def test_copies_of_copies_nest_no_deeper_than_a_resource_may() -> None:
    deeper = [{"op": "copy", "from": "", "path": "/a" * 2**power} for power in range(12)]
    with pytest.raises(Unprocessable, match="nested"):
        apply({"b": 1}, deeper)


@given(document=values, patch=st.lists(operations, max_size=5))
def test_any_patch_gives_a_document_or_a_refusal_and_leaves_what_it_was_given(document: Any, patch: list[Any]) -> None:
    before = json.dumps([document, patch])
    with contextlib.suppress(Malformed, Unprocessable):
        apply(document, patch)
    assert json.dumps([document, patch]) == before
