"""R4's vital signs: which of its profiles an Observation must keep to by its LOINC code.

Owns the table of "magic" codes; refuses to judge. https://hl7.org/fhir/R4/observation-vitalsigns.html
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_LOINC = "http://loinc.org"
_CORE = "http://hl7.org/fhir/StructureDefinition/"

VITAL_SIGNS: Mapping[str, str] = MappingProxyType({
    "85353-1": "vitalspanel", "9279-1": "resprate", "8867-4": "heartrate", "2708-6": "oxygensat",
    "8310-5": "bodytemp", "8302-2": "bodyheight", "9843-4": "headcircum", "29463-7": "bodyweight", "39156-5": "bmi",
    "85354-9": "bp",
})
"""LOINC code -> the profile's name."""


def vital_sign_profiles(observation: Mapping[str, Any]) -> list[str]:
    """The canonical URLs of the vital sign profiles an Observation is meant by."""
    codings = observation.get("code", {}).get("coding", ())
    names = [VITAL_SIGNS.get(coding.get("code", "")) for coding in codings if coding.get("system") == _LOINC]
    return [_CORE + name for name in names if name is not None]
