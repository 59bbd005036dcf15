// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {Base64} from "@openzeppelin/contracts/utils/Base64.sol";
import {P256} from "@openzeppelin/contracts/utils/cryptography/P256.sol";

/// @title Whether a passkey signed a digest
/// @dev https://www.w3.org/TR/webauthn-2/#sctn-verifying-assertion, the steps that matter to a contract: type,
///      challenge, user present, user verified, signature. The beginning of clientDataJSON is built here, in the one
///      order its serialisation has (section 5.8.1.1), so there is nothing to search for and nothing to confuse.
///      Not checked: origin and relying party (another one has another key, so another patient address), counter.
///      OpenZeppelin's WebAuthn needs a Cancun EVM; its P256 does not.
library Passkey {
    uint8 private constant PRESENT_AND_VERIFIED = 0x05;

    /// @param x,y the P-256 public key
    /// @param r,s the signature, s in the lower half
    /// @param authenticatorData as the authenticator gave it
    /// @param clientDataTail all of clientDataJSON after the closing quote of the challenge
    struct Assertion {
        bytes32 x;
        bytes32 y;
        bytes32 r;
        bytes32 s;
        bytes authenticatorData;
        string clientDataTail;
    }

    /// @notice Reads `abi.encode(x, y, r, s, authenticatorData, clientDataTail)`; malformed bytes revert.
    function parse(bytes calldata signature) internal pure returns (Assertion memory a) {
        (a.x, a.y, a.r, a.s, a.authenticatorData, a.clientDataTail) =
            abi.decode(signature, (bytes32, bytes32, bytes32, bytes32, bytes, string));
    }

    /// @notice The patient address of a passkey: formed from its public key as any account's is.
    function accountOf(bytes32 x, bytes32 y) internal pure returns (address) {
        return address(uint160(uint256(keccak256(abi.encode(x, y)))));
    }

    function signed(address account, bytes32 digest, bytes calldata signature) internal view returns (bool) {
        Assertion memory a = parse(signature);
        if (accountOf(a.x, a.y) != account || a.authenticatorData.length < 37) return false;
        if (uint8(a.authenticatorData[32]) & PRESENT_AND_VERIFIED != PRESENT_AND_VERIFIED) return false;
        string memory challenge = Base64.encodeURL(abi.encodePacked(digest));
        bytes32 clientDataHash = sha256(
            abi.encodePacked('{"type":"webauthn.get","challenge":"', challenge, '"', a.clientDataTail)
        );
        return P256.verify(sha256(abi.encodePacked(a.authenticatorData, clientDataHash)), a.r, a.s, a.x, a.y);
    }
}
