"""Strict evaluation: http://hl7.org/fhirpath/N1/#type-safety-and-strict-evaluation"""

from __future__ import annotations

import pytest

from gateway.errors import FHIRPathError
from gateway.fhir.definitions import Definitions
from gateway.fhir.fhirpath.checking import check_types
from gateway.fhir.fhirpath.model import DefinitionsModel

DEFINITIONS = Definitions.load()
MODEL = DefinitionsModel.load(DEFINITIONS)


@pytest.mark.parametrize("text", [
    "Patient.nosuch", "Patient.contact.name.nosuch", "Observation.valueQuantity", "(Observation.value as Period).unit",
    "Patient.name.where(nosuch = 'x')", "Patient.children().first()", "Patient.descendants()[0]",
    "Patient.gender.ofType(nosuch)", "Patient.gender is FHIR.nosuch", "nosuch", "(name | telecom).nosuch",
    "name.select(given).nosuch", "contact[0].nosuch", "1 + -nosuch",
])
def test_what_cannot_mean_anything_is_refused(text: str) -> None:
    with pytest.raises(FHIRPathError):
        check_types(text, MODEL, "Patient")


@pytest.mark.parametrize("text", [
    "Patient.name.given.first()", "Observation.value.unit", "(Observation.value as Quantity).unit", "extension.value",
    "Patient.contained.nosuch", "Patient.name.where($this.use = 'official').family", "Bundle.entry.resource.status",
    "(name | telecom).use", "managingOrganization.resolve().name", "%resource.nosuch", "deceased.ofType(boolean)",
    "Questionnaire.item.item.item.linkId", "1 is System.nosuch", "Patient.active.is(System.Boolean)",
])
def test_what_may_mean_something_passes(text: str) -> None:
    check_types(text, MODEL, "Patient")


def test_every_search_parameter_of_r4_passes() -> None:
    for type_ in sorted(DEFINITIONS.resource_types):
        for parameter in DEFINITIONS.search_parameters(type_).values():
            if parameter.expression:
                check_types(parameter.expression, MODEL, type_)


def test_every_invariant_of_r4_passes_but_the_one_of_an_element_that_is_not_there() -> None:
    refused = set()
    for type_ in sorted(DEFINITIONS.type_names):
        for node in DEFINITIONS.type(type_).nodes.values():
            for constraint in node.constraints:
                try:
                    check_types(constraint.expression, MODEL, node.path)
                except FHIRPathError:
                    refused.add(constraint.key)
    assert refused == {"cid-0"}  # ChargeItemDefinition has no name
