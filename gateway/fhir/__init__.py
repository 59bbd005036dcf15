"""FHIR R4 as pure rules: definitions, resources, validation, search, bundles."""
