"""smart-configuration: what this server really offers.

Owns the document; refuses to name an endpoint, method or capability that is not served.
https://hl7.org/fhir/smart-app-launch/STU2.2/conformance.html
"""

from __future__ import annotations

from typing import Any

from gateway.smart.assertion import METHOD
from gateway.smart.issuer import Smart
from gateway.smart.jwks import ALGORITHMS
from gateway.smart.token_endpoint import GRANT_TYPE


def smart_configuration(smart: Smart) -> dict[str, Any]:
    """The JSON of ``.well-known/smart-configuration``; every URL absolute."""
    methods, algorithms = [METHOD], sorted(ALGORITHMS)
    return {
        "token_endpoint": smart.token_url,
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": algorithms,
        "grant_types_supported": [GRANT_TYPE],
        "scopes_supported": ["system/*.cruds", "system/*.rs", "system/*.read", "system/*.write", "system/*.*"],
        "revocation_endpoint": smart.revocation_url,
        "revocation_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
        "introspection_endpoint": smart.introspection_url,
        "introspection_endpoint_auth_methods_supported": methods,
        "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
        "capabilities": ["client-confidential-asymmetric", "permission-v1", "permission-v2"],
    }
