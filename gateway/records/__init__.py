"""The FHIR interactions: write, read, search, transaction, each decided, sealed and audited."""
