"""The picture of a key: read by cameras, and at home under the strict policy of the pages."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import segno
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.smart.one_time_codes import new_seed, otpauth_uri
from gateway.web.portal.qr_code import picture


def dark_modules(svg: str) -> set[tuple[int, int]]:
    """(column, row) of what the second path strokes: runs of unit height through the middle of each row."""
    _, path = ElementTree.fromstring(svg)  # noqa: S314  # our own
    found, x, y = set(), 0.0, 0.0
    for step in re.findall(r"[Mmh][^Mmh]*", path.attrib["d"]):
        numbers = [float(number) for number in re.findall(r"-?\.?\d+\.?\d*", step)]
        if step[0] == "h":
            found |= {(int(x) + place, int(y)) for place in range(int(numbers[0]))}
            x += numbers[0]
        else:
            x, y = (numbers[0], numbers[1]) if step[0] == "M" else (x + numbers[0], y + numbers[1])
    return found


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=40))
def test_the_picture_says_the_uri_and_nothing_a_page_must_not_hold(name: str, issuer: str) -> None:
    uri = otpauth_uri(new_seed(), name=name, issuer=issuer)
    svg = picture(uri)
    assert svg is not None
    root = ElementTree.fromstring(svg)  # noqa: S314  # our own
    assert [(part.tag, set(part.attrib)) for part in root] == [("path", {"fill", "d"}), ("path", {"stroke", "d"})]
    assert set(root.attrib) == {"viewBox"}
    matrix = segno.make_qr(uri, error="m").matrix
    assert dark_modules(svg) == {(column + 4, row + 4) for row, line in enumerate(matrix)
                                 for column, module in enumerate(line) if module}
    assert root.attrib["viewBox"] == f"0 0 {len(matrix) + 8} {len(matrix) + 8}"  # with the quiet zone


def test_what_no_code_holds_has_no_picture() -> None:
    assert picture("x" * 5_000) is None
