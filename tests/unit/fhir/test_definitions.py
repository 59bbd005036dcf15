"""The compiled tables: what the rest of the gateway relies on (mappings/fhir)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway.errors import Misconfigured
from gateway.fhir.compile_definitions import tables
from gateway.fhir.definitions import Definitions, mappings_folder
from tests.shared_data import SHARED, needs_shared


@pytest.fixture(scope="module")
def definitions() -> Definitions:
    return Definitions.load()


def test_all_146_resource_types_of_r4_are_there(definitions: Definitions) -> None:
    assert len(definitions.resource_types) == 146
    assert {"Patient", "Observation", "MedicationStatement", "Appointment"} <= definitions.resource_types
    assert "DomainResource" not in definitions.resource_types


def test_loading_is_quick() -> None:
    best = min(_timed_load() for _ in range(5))
    assert best < 0.150, f"{best:.3f} s"


def _timed_load() -> float:
    start = time.perf_counter()
    Definitions.load()
    return time.perf_counter() - start


def test_tables_are_small() -> None:
    assert sum(file.stat().st_size for file in (mappings_folder() / "fhir").iterdir()) < 1_200_000


def test_a_choice_has_a_json_name_per_type(definitions: Definitions) -> None:
    value = definitions.type("Observation").root.elements["value"]
    assert value.choice
    assert [name for name, _ in value.json_names][:2] == ["valueQuantity", "valueCodeableConcept"]


def test_a_content_reference_names_the_node_it_reuses(definitions: Definitions) -> None:
    nodes = definitions.type("Observation").nodes
    assert nodes["Observation.component"].elements["referenceRange"].node == "Observation.referenceRange"


def test_every_type_and_node_an_element_names_exists(definitions: Definitions) -> None:
    for name in definitions.type_names:
        type_ = definitions.type(name)
        for node in type_.nodes.values():
            for element in node.elements.values():
                assert element.types, f"{node.path}.{element.name}"
                assert element.node is None or element.node in type_.nodes
                assert all(definitions.has_type(t.code) for t in element.types), f"{node.path}.{element.name}"


def test_every_required_binding_has_a_value_set_with_codes_or_a_rule(definitions: Definitions) -> None:
    for name in definitions.type_names:
        for node in definitions.type(name).nodes.values():
            for element in node.elements.values():
                if element.binding and element.binding.strength == "required":
                    value_set = definitions.value_set(element.binding.value_set)
                    assert value_set is not None
                    assert bool(value_set.codes) != bool(value_set.rule), value_set.url


def test_value_sets_honour_concepts_excludes_and_hierarchies(definitions: Definitions) -> None:
    status = definitions.value_set("http://hl7.org/fhir/ValueSet/observation-status|4.0.1")
    assert status is not None
    assert status.all_codes() == {"registered", "preliminary", "final", "amended", "corrected", "cancelled",
                                  "entered-in-error", "unknown"}
    when = definitions.value_set("http://hl7.org/fhir/ValueSet/event-timing")
    assert when is not None
    assert set(when.codes) == {"http://hl7.org/fhir/event-timing",
                               "http://terminology.hl7.org/CodeSystem/v3-TimingEvent"}
    mimetypes = definitions.value_set("http://hl7.org/fhir/ValueSet/mimetypes")
    assert mimetypes is not None
    assert mimetypes.rule == "mimetype"


def test_search_parameters_hold_only_the_part_of_their_type(definitions: Definitions) -> None:
    parameters = definitions.search_parameters("Observation")
    assert parameters["date"].expression == "Observation.effective"
    assert parameters["patient"].targets == ("Patient", "Group")
    assert parameters["_lastUpdated"].expression == "Resource.meta.lastUpdated"
    assert parameters["code-value-quantity"].components == (("code", "code"), ("value-quantity", "value.as(Quantity)"))
    assert "_text" in parameters
    assert "_text" not in definitions.search_parameters("Bundle")  # A Bundle is no DomainResource.


def test_every_search_parameter_but_the_three_of_prose_has_an_expression(definitions: Definitions) -> None:
    without = {code for name in definitions.resource_types
               for code, parameter in definitions.search_parameters(name).items() if not parameter.expression}
    assert without == {"_text", "_content", "_query"}


def test_compartments(definitions: Definitions) -> None:
    assert definitions.compartments == ("Device", "Encounter", "Patient", "Practitioner", "RelatedPerson")
    assert definitions.patient_compartment("Observation") == ("subject", "performer")
    assert definitions.patient_compartment("Organization") == ()


def test_the_types_of_a_compartment_begin_with_its_own(definitions: Definitions) -> None:
    """https://hl7.org/fhir/R4/compartmentdefinition-encounter.html: what a record's page links count by."""
    members = definitions.compartment_types("Encounter")
    assert members[0] == "Encounter"
    assert list(members[1:]) == sorted(name for name in definitions.resource_types - {"Encounter"}
                                       if definitions.compartment("Encounter", name))


def test_inheritance(definitions: Definitions) -> None:
    assert definitions.is_a("Age", "Quantity")
    assert definitions.is_a("Patient", "DomainResource")
    assert not definitions.is_a("Bundle", "DomainResource")
    assert not definitions.is_a("Nonsense", "Resource")


def test_a_folder_without_tables_is_a_misconfiguration(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured):
        Definitions.load(tmp_path)


@needs_shared
def test_the_committed_tables_are_what_the_command_makes_byte_for_byte() -> None:
    assert SHARED is not None
    folder = mappings_folder() / "fhir"
    for name, content in tables(SHARED / "fhir-r4-core").items():
        assert (folder / name).read_bytes() == content, name
