"""Keys of passkeys, as WebAuthn keeps them.

Owns reading a COSE_Key; refuses every algorithm but ES256, the one the contracts verify.
https://www.rfc-editor.org/rfc/rfc9053, https://www.w3.org/TR/webauthn-3/#sctn-attested-credential-data
"""

from __future__ import annotations

from gateway.access.passkey import PublicKey


def public_key_of(cose: bytes) -> PublicKey | None:
    """The key of a COSE_Key, None where it is not one of ES256."""
    from webauthn.helpers import decode_credential_public_key  # loaded by the few workers that sign
    from webauthn.helpers.cose import COSEAlgorithmIdentifier
    from webauthn.helpers.decode_credential_public_key import DecodedEC2PublicKey

    found = decode_credential_public_key(cose)
    if not isinstance(found, DecodedEC2PublicKey) or found.alg != COSEAlgorithmIdentifier.ECDSA_SHA_256:
        return None
    return PublicKey(x=bytes(found.x), y=bytes(found.y))
