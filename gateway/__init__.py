"""A FHIR R4 gateway: records sealed into blocks, anchored on a chain, read as the patient permits."""
