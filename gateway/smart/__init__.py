"""SMART on FHIR: who may ask, with which token (SMART App Launch 2.2, OAuth 2.0)."""
