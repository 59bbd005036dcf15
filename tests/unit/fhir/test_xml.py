"""Resources as XML and back. https://hl7.org/fhir/R4/xml.html"""

from __future__ import annotations

import gzip
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fhir.resources.R4B import get_fhir_model_class
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from gateway.errors import GatewayError, Malformed, NotAcceptable
from gateway.fhir.definitions import Definitions
from gateway.fhir.resource import canonical, parse, serialise
from gateway.fhir.xml_reader import read_xml
from gateway.fhir.xml_shapes import Shapes
from gateway.fhir.xml_writer import write_xml
from tests.conformance.validator_sets import bodies
from tests.shared_data import SHARED, needs_shared

DEFINITIONS = Definitions.load()
SHAPES = Shapes(DEFINITIONS)
FIXTURES = sorted((Path(__file__).resolve().parents[2] / "fixtures" / "fhir").glob("*.json"))
SETS = ("hl7-r4-examples", "us-core-examples", "ips-examples", "au-test-data", "ch-emed-examples", "inferno-uscore")


def there_and_back(resource: dict[str, Any], *, pretty: bool = False) -> dict[str, Any]:
    return read_xml(write_xml(resource, SHAPES, pretty=pretty), SHAPES)


def patient(inside: str, attributes: str = "") -> bytes:
    return f'<Patient xmlns="http://hl7.org/fhir"{attributes}>{inside}</Patient>'.encode()


def refused(body: bytes) -> tuple[str, str | None]:
    with pytest.raises(Malformed) as caught:
        read_xml(body, SHAPES)
    issue = caught.value.issues[0]
    return issue.diagnostics, issue.expression


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_an_example_comes_back_as_it_was(path: Path) -> None:
    resource = parse(path.read_bytes())
    assert canonical(there_and_back(resource)) == canonical(resource)
    assert canonical(there_and_back(resource, pretty=True)) == canonical(resource)


def carried(resource: Any) -> bool:
    """Whether R4 has a place for all of it: some published examples are wrong on purpose."""
    try:
        write_xml(resource, SHAPES)
    except (NotAcceptable, AttributeError, TypeError, KeyError):
        return False
    return True


@needs_shared
@pytest.mark.parametrize("name", SETS)
def test_every_published_example_comes_back_as_it_was(name: str) -> None:
    assert SHARED is not None
    met = 0
    for file, body in bodies(SHARED / name):
        resource = parse(body) if b'"resourceType"' in body[:4000] else None
        if resource is None or not SHAPES.is_resource(resource["resourceType"]) or not carried(resource):
            continue
        back = there_and_back(resource)
        assert canonical(back) == canonical(resource), file
        met += 1
    assert met >= 2


@needs_shared
def test_synthea_bundles_come_back_as_they_were() -> None:
    assert SHARED is not None
    smallest = sorted((SHARED / "synthea-r4-smart").rglob("*.json.gz"), key=lambda path: path.stat().st_size)[:6]
    for path in smallest:
        resource = parse(gzip.decompress(path.read_bytes()))
        assert canonical(there_and_back(resource)) == canonical(resource), path.name


def published_xml() -> Iterator[Path]:
    assert SHARED is not None
    yield from (SHARED / "fhirpath" / "input").glob("*.xml")
    yield from (SHARED / "validator-cases").rglob("*.xml")


@needs_shared
def test_published_xml_is_written_as_lxml_reads_it() -> None:
    """lxml as the second opinion: same elements, attributes and order, whatever the layout."""
    met = 0
    for path in published_xml():
        body = path.read_bytes()
        try:
            resource = read_xml(body, SHAPES)
        except Malformed:
            continue
        if not carried(resource):
            continue
        assert shape_of(write_xml(resource, SHAPES)) == shape_of(body), path.name
        met += 1
    assert met >= 5


def shape_of(body: bytes) -> list[Any]:
    """What XML says by lxml, less comments, layout and schema locations."""
    def of(node: Any) -> list[Any]:
        children = [of(child) for child in node if isinstance(child.tag, str)]
        if "xhtml" in node.tag:
            return [node.tag]
        return [node.tag, sorted((k, v) for k, v in node.attrib.items() if "schemaLocation" not in k), children]
    return of(etree.fromstring(body, etree.XMLParser(resolve_entities=False, no_network=True)))


def by_fhir_resources(text: str) -> Any:
    """Less what fhir.resources has no XML for: the ids of elements, and a narrative's own way of writing."""
    return without(json.loads(text), ("div",), root=True)


def without(value: Any, names: tuple[str, ...], *, root: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: without(item, names) for key, item in value.items() if key not in names and (root or key != "id")}
    return [without(item, names) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fhir_resources_reads_our_xml_as_it_reads_the_json(path: Path) -> None:
    """A second opinion on names, wrapping and order. It folds 1.10 into 1.1, and Z into +00:00, both ways alike."""
    body = path.read_bytes()
    model = get_fhir_model_class(json.loads(body)["resourceType"])
    ours = model.model_validate_xml(write_xml(parse(body), SHAPES))
    theirs = model.model_validate_json(body)
    assert by_fhir_resources(ours.model_dump_json()) == by_fhir_resources(theirs.model_dump_json())


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_we_read_the_xml_of_fhir_resources_as_it_does(path: Path) -> None:
    resource = without(json.loads(path.read_text()), (), root=True)
    model = get_fhir_model_class(resource["resourceType"])
    written = bytes(model.model_validate(resource).model_dump_xml())
    back = model.model_validate_json(serialise(read_xml(written, SHAPES)))
    assert by_fhir_resources(back.model_dump_json()) == by_fhir_resources(
        model.model_validate_xml(written).model_dump_json())


@pytest.mark.parametrize("text", ["1.10", "0.0100", "1.0E-22", "100", "-0.0", "1e2", "-0", "123456789012345678901"])
def test_a_decimal_keeps_its_text(text: str) -> None:
    body = f'{{"resourceType":"Observation","valueQuantity":{{"value":{text}}}}}'.encode()
    written = write_xml(parse(body), SHAPES)
    assert f'<value value="{text}"/>'.encode() in written
    assert serialise(read_xml(written, SHAPES)) == body


def test_a_date_keeps_its_zone_and_precision() -> None:
    body = patient('<birthDate value="1970-03"/><deceasedDateTime value="2020-01-01T00:00:00Z"/>')
    assert read_xml(body, SHAPES) == {"resourceType": "Patient", "birthDate": "1970-03",
                                      "deceasedDateTime": "2020-01-01T00:00:00Z"}


def test_ids_and_extensions_of_primitives_keep_their_places() -> None:
    """json.html#primitive: null in the one array where the other has something."""
    resource = {"resourceType": "Patient", "name": [{
        "given": ["A", None, "C"],
        "_given": [{"id": "g1"}, {"extension": [{"url": "urn:x", "valueString": "m"}]}, None],
        "id": "n"}], "_birthDate": {"extension": [{"url": "urn:x", "valueCode": "unknown"}]}}
    assert canonical(there_and_back(resource)) == canonical(resource)
    alone = {"resourceType": "Patient", "name": [{"_given": [{"extension": [{"url": "urn:x", "valueCode": "u"}]}]}]}
    assert canonical(there_and_back(alone)) == canonical(alone)


def test_elements_are_written_in_the_order_r4_gives() -> None:
    written = write_xml({"resourceType": "Patient", "birthDate": "1970", "active": True, "id": "a",
                         "name": [{"given": ["G"], "family": "F", "use": "usual"}]}, SHAPES).decode()
    assert written == (
        '<?xml version="1.0" encoding="UTF-8"?><Patient xmlns="http://hl7.org/fhir"><id value="a"/>'
        '<active value="true"/><name><use value="usual"/><family value="F"/><given value="G"/></name>'
        '<birthDate value="1970"/></Patient>')


def test_contained_resources_and_bundle_entries_are_wrapped() -> None:
    resource = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": {
        "resourceType": "Patient", "contained": [{"resourceType": "Organization", "id": "o"}], "active": False}}]}
    written = write_xml(resource, SHAPES)
    assert b"<resource><Patient><contained><Organization>" in written
    assert canonical(read_xml(written, SHAPES)) == canonical(resource)


NARRATIVE = ("<div xmlns=\"http://www.w3.org/1999/xhtml\">\n <p class='x'>a &amp; b &#160;&lt;<br/><b >c</b>"
             "<!-- kept --></p><img src=\"a>b.png\" alt=\"\"/>\t</div>")


def test_a_narrative_keeps_its_bytes_both_ways() -> None:
    resource = {"resourceType": "Patient", "text": {"status": "generated", "div": NARRATIVE}, "active": True}
    assert NARRATIVE.encode() in write_xml(resource, SHAPES)
    assert there_and_back(resource) == resource
    assert there_and_back(resource, pretty=True) == resource


def test_a_narrative_takes_along_the_namespaces_it_had_from_outside() -> None:
    body = (b'<f:Patient xmlns:f="http://hl7.org/fhir" xmlns="http://www.w3.org/1999/xhtml" xmlns:h="urn:unused">'
            b'<f:text><f:status value="generated"/><div>x</div></f:text></f:Patient>')
    assert read_xml(body, SHAPES)["text"]["div"] == '<div xmlns="http://www.w3.org/1999/xhtml">x</div>'
    body = patient('<text><status value="generated"/><h:div><h:p>x</h:p></h:div></text>',
                   ' xmlns:h="http://www.w3.org/1999/xhtml"')
    again = there_and_back(read_xml(body, SHAPES))
    assert etree.fromstring(again["text"]["div"]).tag == "{http://www.w3.org/1999/xhtml}div"


def test_an_empty_narrative_is_kept() -> None:
    body = patient('<text><div xmlns="http://www.w3.org/1999/xhtml" title="a>b"/></text><active value="true"/>')
    read = read_xml(body, SHAPES)
    assert read["text"]["div"] == '<div xmlns="http://www.w3.org/1999/xhtml" title="a>b"/>'
    assert read["active"] is True


@pytest.mark.parametrize("text", ["<&>\"'", "a\tb\nc\rd", "\u00a0\u2028\U0001f600", "]]>", "  x  "])
def test_text_keeps_every_character(text: str) -> None:
    resource = {"resourceType": "Patient", "name": [{"family": text}]}
    assert there_and_back(resource) == resource


@pytest.mark.parametrize("text", ["\x00", "\x0b", "￾", "￿"])
def test_what_xml_cannot_carry_is_refused_with_the_place(text: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        write_xml({"resourceType": "Patient", "name": [{"family": text}]}, SHAPES)
    assert caught.value.issues[0].expression == "Patient.name.family"
    assert text not in caught.value.issues[0].diagnostics


@pytest.mark.parametrize("body", [
    b'<!DOCTYPE Patient><Patient xmlns="http://hl7.org/fhir"/>',
    b'<!DOCTYPE p [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + patient('<id value="&x;"/>'),
    b'<!DOCTYPE p [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + patient('<id value="&b;"/>'),
    b'<!DOCTYPE p SYSTEM "http://127.0.0.1:9/x.dtd"><Patient xmlns="http://hl7.org/fhir"/>',
])
def test_document_types_and_their_entities_are_refused(body: bytes) -> None:
    assert "document type" in refused(body)[0]


@pytest.mark.parametrize(("body", "problem", "place"), [
    (patient("<nosuch/>"), "unknown element", "Patient.nosuch"),
    (patient('<name><given value="a"/><nosuch/></name>'), "unknown element", "Patient.name[0].nosuch"),
    (patient("", ' active="true"'), "unknown attribute", "Patient"),
    (patient('<active value="true" x="1"/>'), "unknown attribute", "Patient.active"),
    (patient('<name url="u"/>'), "unknown attribute", "Patient.name[0]"),
    (patient('<x:name xmlns:x="urn:other"/>'), "namespace", "Patient.name"),
    (patient('<name xmlns="urn:other"/>'), "namespace", "Patient.name"),
    (patient("<text><div>x</div></text>"), "namespace", "Patient.text.div"),
    (patient('<birthDate value="1970"/><active value="true"/>'), "out of order", "Patient.active"),
    (patient('<active value="true"/><active value="true"/>'), "may appear once", "Patient.active"),
    (patient('<active value="TRUE"/>'), "boolean", "Patient.active"),
    (patient('<active value="true">x</active>'), "text", "Patient.active"),
    (patient('<active value="true"><id value="x"/></active>'), "unknown element", "Patient.active.id"),
    (patient('<multipleBirthInteger value="1.5"/>'), "integer", "Patient.multipleBirthInteger"),
    (patient("stray"), "text", "Patient"),
    (patient("<contained/>"), "one resource", "Patient.contained[0]"),
    (patient("<contained><Patient/><Patient/></contained>"), "one resource", "Patient.contained[0]"),
    (patient("<contained><Nosuch/></contained>"), "no R4 resource", "Patient.contained[0].Nosuch"),
    (patient("<contained><Resource/></contained>"), "no R4 resource", "Patient.contained[0].Resource"),
    (b"<Patient/>", "namespace", "Patient"),
    (b'<HumanName xmlns="http://hl7.org/fhir"/>', "no R4 resource", "HumanName"),
])
def test_what_r4_does_not_have_is_refused_with_the_place(body: bytes, problem: str, place: str) -> None:
    diagnostics, expression = refused(body)
    assert problem in diagnostics
    assert expression == place


@pytest.mark.parametrize("body", [
    b"", b"<", b"{}", b"\xff\xfe", patient("&nbsp;"), patient("") + b"<x/>", b"\x00" * 9,
    b'<?xml version="1.0" encoding="UTF-16"?><Patient xmlns="http://hl7.org/fhir"/>',
    '<?xml version="1.0" encoding="UTF-16"?><Patient xmlns="http://hl7.org/fhir"/>'.encode("utf-16"),
    b'<?xml version="1.0" encoding="latin-1"?><Patient xmlns="http://hl7.org/fhir"/>',
    patient('<name><family value="\xff"/></name>').replace("ÿ".encode(), b"\xff"),
    patient("<x:name/>"), patient('<active value="true" value="false"/>'),
])
def test_what_is_no_utf8_xml_is_malformed(body: bytes) -> None:
    refused(body)


@pytest.mark.parametrize("inside", [
    '<extension url="u">' * 150 + "</extension>" * 150,
    "<contained><Patient>" * 100 + "</Patient></contained>" * 100,
    '<text><div xmlns="http://www.w3.org/1999/xhtml">' + "<b>" * 5000 + "</b>" * 5000 + "</div></text>",
])
def test_nesting_ends_where_that_of_json_ends(inside: str) -> None:
    assert "nested deeper" in refused(patient(inside))[0]


@pytest.mark.parametrize("attributes", [
    " ".join(f'a{number}="b"' for number in range(300_000)),
    " ".join(f"xmlns:a{number}='u:b'" for number in range(101))])
def test_an_element_of_very_many_attributes_is_refused_before_they_are_read(attributes: str) -> None:
    began = time.perf_counter()
    with pytest.raises(Malformed, match="attributes"):
        read_xml(patient("", f" {attributes}"), SHAPES)
    with pytest.raises(Malformed, match="attributes"):
        read_xml(patient("<name/>" * 200_000 + f"<name {attributes}/>"), SHAPES)
    assert time.perf_counter() - began < 2


def test_namespaces_declared_around_an_element_have_a_limit() -> None:
    few = " ".join(f'xmlns:a{number}="u:b"' for number in range(60))
    with pytest.raises(Malformed, match="namespaces"):
        read_xml(patient(f'<extension url="u:a" {few}>' * 4), SHAPES)
    inside = f'<name {few}><family value="x"/></name>' * 5
    assert len(read_xml(patient(inside), SHAPES)["name"]) == 5


def test_the_deepest_that_is_read_can_be_written_and_read_again() -> None:
    inside = '<extension url="u">' * 99 + '<valueString value="x"/>' + "</extension>" * 99
    resource = read_xml(patient(inside), SHAPES)
    assert canonical(parse(serialise(resource))) == canonical(resource)
    assert canonical(there_and_back(resource)) == canonical(resource)


@settings(max_examples=150, deadline=None)
@given(hostile=st.one_of(st.binary(max_size=60), st.text(alphabet="<>/=\"' &;:!-?[]axPtient", max_size=60).map(
    lambda text: patient(text))))
def test_no_bytes_raise_anything_but_malformed(hostile: bytes) -> None:
    try:
        read_xml(hostile, SHAPES)
    except GatewayError as error:
        raised = type(error)
    else:
        raised = Malformed
    assert raised is Malformed


texts = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="￾￿"), min_size=1)
extensions = st.lists(st.fixed_dictionaries({"url": st.just("urn:x"), "valueString": texts}), min_size=1, max_size=2)
siblings = st.one_of(st.none(), st.fixed_dictionaries({"id": st.just("i")}, optional={"extension": extensions}))


@settings(max_examples=150, deadline=None)
@given(items=st.lists(st.tuples(st.one_of(st.none(), texts), siblings), min_size=1, max_size=5))
def test_any_array_of_primitives_keeps_its_places(items: list[tuple[Any, Any]]) -> None:
    items = [pair for pair in items if pair != (None, None)]
    values, beside = [value for value, _ in items], [one for _, one in items]
    name = {**({"given": values} if any(value is not None for value in values) else {}),
            **({"_given": beside} if any(beside) else {})}
    resource = {"resourceType": "Patient", "name": [{**name, "use": "usual"}]}
    assert canonical(there_and_back(resource)) == canonical(resource)


def test_pretty_xml_is_laid_out_a_line_an_element() -> None:
    written = write_xml({"resourceType": "Patient", "name": [{"family": "F"}]}, SHAPES, pretty=True)
    assert io.BytesIO(written).readlines()[2:4] == [b"  <name>\n", b'    <family value="F"/>\n']
