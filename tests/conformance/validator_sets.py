"""The public example sets, as an iterator of resources with where they come from."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

SETS = ("hl7-r4-examples", "synthea-r4-smart", "us-core-examples", "ips-examples", "au-test-data", "ch-emed-examples",
        "inferno-uscore")

KNOWN_DEFECTS = {
    ("hl7-r4-examples", "ActivityDefinition/blood-tubes-supply"): "the div holds white space only (txt-2)",
    ("hl7-r4-examples", "Bundle/10bb101f-a121-4264-a920-67be9cb82c74"): "a fullUrl ends in pat12, its resource in pat2",
    ("hl7-r4-examples", "DeviceMetric/example"): "parent refers to a DeviceDefinition, only Device is allowed",
    ("hl7-r4-examples", "DeviceUseStatement/example"): "reasonReference refers to a Procedure, which is not allowed",
    ("hl7-r4-examples", "EventDefinition/example"): "the div holds white space only (txt-2)",
    ("hl7-r4-examples", "Questionnaire/zika-virus-exposure-assessment"): "the div holds white space only (txt-2)",
    ("hl7-r4-examples", "ImplementationGuide/fhir"): "no name and status; a reference whose id has 67 characters",
    ("hl7-r4-examples", "MedicationRequest/medrx0301"): "dispenseRequest.performer refers to a Practitioner",
    ("us-core-examples", "Bundle/uscore-mo3"): "fullUrls are relative",
}
"""Published examples that break R4 itself: (set, Type/id) -> the rule."""


def bodies(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(file name, JSON of one resource); gz and NDJSON are opened."""
    for path in sorted(folder.rglob("*")):
        if ".json" not in path.name and ".ndjson" not in path.name:
            continue
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if ".ndjson" in path.name:
            for line in raw.splitlines():
                if line.strip():
                    yield path.name, line
        else:
            yield path.name, raw
