"""smart-configuration and OpenID Connect discovery: what this server really offers.

Owns both documents; refuses to name an endpoint, method or capability that is not served.
https://hl7.org/fhir/smart-app-launch/STU2.2/conformance.html, https://openid.net/specs/openid-connect-discovery-1_0.html,
https://www.rfc-editor.org/rfc/rfc8414
"""

from __future__ import annotations

from typing import Any, Final

from gateway.smart.client_authentication import BASIC, JWT, NONE
from gateway.smart.issuer import Smart
from gateway.smart.jwks import ALGORITHMS
from gateway.smart.signing import ALGORITHM
from gateway.smart.token_endpoint import GRANT_TYPES

CAPABILITIES: Final = (
    "launch-standalone", "launch-ehr", "client-public", "client-confidential-symmetric",
    "client-confidential-asymmetric", "sso-openid-connect", "context-standalone-patient", "context-ehr-patient",
    "context-ehr-encounter", "context-banner", "context-style", "permission-offline", "permission-online",
    "permission-patient", "permission-user", "permission-v1", "permission-v2", "authorize-post")
_SCOPES: Final = (
    "openid", "fhirUser", "profile", "launch", "launch/patient", "launch/encounter", "online_access", "offline_access",
    *(f"{context}/*.{letters}" for context in ("patient", "user", "system")
      for letters in ("cruds", "rs", "read", "write", "*")))


def smart_configuration(smart: Smart) -> dict[str, Any]:
    """The JSON of ``.well-known/smart-configuration``; every URL absolute."""
    return {**_shared(smart), "management_endpoint": _manage(smart), "capabilities": list(CAPABILITIES)}


def openid_configuration(smart: Smart) -> dict[str, Any]:
    """The JSON of ``.well-known/openid-configuration`` and ``.well-known/oauth-authorization-server``."""
    return {
        **_shared(smart),
        "userinfo_endpoint": smart.userinfo_url,
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [ALGORITHM],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "fhirUser"],
        "response_modes_supported": ["query"],
        "prompt_values_supported": ["none", "login", "consent", "select_account"],
        "claims_parameter_supported": False,
        "request_parameter_supported": False,
        "request_uri_parameter_supported": False,
    }


def oauth_urls(smart: Smart) -> dict[str, str]:
    """What the CapabilityStatement names for apps that look there, by the names of SMART's ``oauth-uris`` extension.

    https://hl7.org/fhir/smart-app-launch/1.0.0/conformance/index.html#using-cs
    """
    return {
        "authorize": smart.authorize_url, "token": smart.token_url, "introspect": smart.introspection_url,
        "revoke": smart.revocation_url, "manage": _manage(smart), **_registration(smart, "register")}


def _manage(smart: Smart) -> str:
    return f"{smart.issuer}/portal/apps"


def _registration(smart: Smart, name: str) -> dict[str, str]:
    return {} if smart.settings.registration == "closed" else {name: f"{smart.issuer}/oauth/register"}


def _shared(smart: Smart) -> dict[str, Any]:
    confidential, algorithms = [BASIC, JWT], sorted(ALGORITHMS)
    return {
        "issuer": smart.issuer,
        "jwks_uri": smart.keys_url,
        "authorization_endpoint": smart.authorize_url,
        "token_endpoint": smart.token_url,
        "token_endpoint_auth_methods_supported": [NONE, *confidential],
        "token_endpoint_auth_signing_alg_values_supported": algorithms,
        "grant_types_supported": list(GRANT_TYPES),
        "response_types_supported": ["code"],
        "code_challenge_methods_supported": ["S256"],
        "scopes_supported": list(_SCOPES),
        "authorization_response_iss_parameter_supported": True,
        **_registration(smart, "registration_endpoint"),
        "revocation_endpoint": smart.revocation_url,
        "revocation_endpoint_auth_methods_supported": [NONE, *confidential],
        "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
        "introspection_endpoint": smart.introspection_url,
        "introspection_endpoint_auth_methods_supported": confidential,
        "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
    }


def style(_: Smart) -> dict[str, str]:
    """SMART's styles for apps (``smart_style_url``)."""
    return {
        "color_background": "#ffffff", "color_error": "#b3261e", "color_highlight": "#0b57d0",
        "color_modal_backdrop": "#00000066", "color_success": "#146c2e", "color_text": "#1c1b1f",
        "dim_border_radius": "6px", "dim_font_size": "16px", "dim_spacing_size": "16px",
        "font_family_body": "system-ui, sans-serif", "font_family_heading": "system-ui, sans-serif",
    }
