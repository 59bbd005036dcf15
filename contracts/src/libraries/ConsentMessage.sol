// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {IConsentRegistry} from "../interfaces/IConsentRegistry.sol";

/// @title The EIP-712 messages a patient signs
/// @dev https://eips.ethereum.org/EIPS/eip-712. Terms arrive as their hashStruct: their strings stay off the chain.
library ConsentMessage {
    bytes32 internal constant DOMAIN =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 internal constant GRANT = keccak256(
        "Grant(address patient,bytes32 grantee,Terms terms,uint64 validFrom,uint64 validUntil,uint64 epoch,uint256 nonce,uint64 deadline)"
        "Terms(string statement,string hospital,string grantee,string purposes,string records,string period,bytes32 salt)"
    );
    bytes32 internal constant REVOKE =
        keccak256("Revoke(address patient,bytes32 grantId,uint256 nonce,uint64 deadline)");
    bytes32 internal constant REVOKE_ALL =
        keccak256("RevokeAll(address patient,uint64 epoch,uint256 nonce,uint64 deadline)");

    function domain(uint256 chainId, address verifyingContract) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(DOMAIN, keccak256("FHIR Gateway Consent"), keccak256("1"), chainId, verifyingContract)
        );
    }

    function grantId(address patient, bytes32 grantee, bytes32 termsHash) internal pure returns (bytes32) {
        return keccak256(abi.encode(patient, grantee, termsHash));
    }

    function hashGrant(IConsentRegistry.GrantRequest calldata r) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                GRANT, r.patient, r.grantee, r.termsHash, r.validFrom, r.validUntil, r.epoch, r.nonce, r.deadline
            )
        );
    }

    function hashRevoke(IConsentRegistry.RevokeRequest calldata r) internal pure returns (bytes32) {
        bytes32 id = grantId(r.patient, r.grantee, r.termsHash);
        return keccak256(abi.encode(REVOKE, r.patient, id, r.nonce, r.deadline));
    }

    function hashRevokeAll(IConsentRegistry.RevokeAllRequest calldata r) internal pure returns (bytes32) {
        return keccak256(abi.encode(REVOKE_ALL, r.patient, r.epoch, r.nonce, r.deadline));
    }

    function digest(bytes32 separator, bytes32 structHash) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", separator, structHash));
    }
}
