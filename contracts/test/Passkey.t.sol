// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {Base64} from "@openzeppelin/contracts/utils/Base64.sol";
import {IConsentRegistry} from "src/interfaces/IConsentRegistry.sol";
import {Base} from "./Base.sol";

/// @dev WebAuthn 2, section 7.2, as far as a contract checks it.
contract PasskeyTest is Base {
    uint256 private constant KEY = 0x9A55;
    string private constant TAIL = ',"origin":"https://portal.example.org","crossOrigin":false}';

    struct Spoiled {
        bytes1 flags;
        string kind;
        uint256 key;
        bool highS;
    }

    function good() private pure returns (Spoiled memory) {
        return Spoiled({flags: 0x05, kind: "webauthn.get", key: KEY, highS: false});
    }

    function patientOf(uint256 key) private view returns (address) {
        (uint256 x, uint256 y) = vm.publicKeyP256(key);
        return address(uint160(uint256(keccak256(abi.encode(x, y)))));
    }

    function assertion(bytes32 digest, Spoiled memory how) private view returns (bytes memory) {
        bytes memory authenticator = abi.encodePacked(sha256("portal.example.org"), how.flags, uint32(1));
        bytes memory client = abi.encodePacked(
            '{"type":"', how.kind, '","challenge":"', Base64.encodeURL(abi.encodePacked(digest)), '"', TAIL
        );
        (bytes32 r, bytes32 s) = vm.signP256(how.key, sha256(abi.encodePacked(authenticator, sha256(client))));
        bool high = uint256(s) > P256_ORDER / 2;
        if (high != how.highS) s = bytes32(P256_ORDER - uint256(s));
        (uint256 x, uint256 y) = vm.publicKeyP256(how.key);
        return abi.encode(x, y, r, s, authenticator, TAIL);
    }

    function passkeyRequest(uint256 key, uint256 rest) private view returns (IConsentRegistry.GrantRequest memory) {
        return request(patientOf(key), nonceOf(IConsentRegistry.SignerKind.Passkey, rest));
    }

    function refuses(Spoiled memory how) private {
        IConsentRegistry.GrantRequest memory r = passkeyRequest(KEY, 1);
        bytes32 digest = consents.grantDigest(r);
        bytes memory signature = assertion(digest, how);
        vm.expectRevert(
            abi.encodeWithSelector(IConsentRegistry.InvalidSignature.selector, r.patient, uint8(2), digest)
        );
        consents.grantBySig(r, signature);
    }

    function test_grantBySig_revokeBySig_revokeAllBySig_by_passkey() public {
        IConsentRegistry.GrantRequest memory r = passkeyRequest(KEY, 1);
        consents.grantBySig(r, assertion(consents.grantDigest(r), good()));
        yes(consents.isGranted(idOf(r)), "granted");
        yes(consents.grantOf(idOf(r)).kind == IConsentRegistry.SignerKind.Passkey, "kind");
        IConsentRegistry.RevokeRequest memory end =
            revocation(r, nonceOf(IConsentRegistry.SignerKind.Passkey, 2));
        consents.revokeBySig(end, assertion(consents.revokeDigest(end), good()));
        no(consents.isGranted(idOf(r)), "revoked");
        IConsentRegistry.RevokeAllRequest memory all = IConsentRegistry.RevokeAllRequest(
            r.patient, 0, nonceOf(IConsentRegistry.SignerKind.Passkey, 3), r.deadline
        );
        consents.revokeAllBySig(all, assertion(consents.revokeAllDigest(all), good()));
        eq(consents.epochOf(r.patient), 1);
    }

    function test_grantBySig_passkey_needs_user_present_and_verified() public {
        Spoiled memory how = good();
        for (uint8 flags = 0; flags < 5; ++flags) {
            how.flags = bytes1(flags);
            refuses(how);
        }
        how.flags = 0x1d;
        IConsentRegistry.GrantRequest memory r = passkeyRequest(KEY, 1);
        consents.grantBySig(r, assertion(consents.grantDigest(r), how));
    }

    function test_grantBySig_passkey_refuses_a_registration() public {
        Spoiled memory how = good();
        how.kind = "webauthn.create";
        refuses(how);
    }

    function test_grantBySig_passkey_refuses_another_key_and_the_malleable_twin() public {
        Spoiled memory how = good();
        how.key = KEY + 1;
        refuses(how);
        how = good();
        how.highS = true;
        refuses(how);
    }

    function test_grantBySig_passkey_refuses_bytes_that_are_no_assertion() public {
        IConsentRegistry.GrantRequest memory r = passkeyRequest(KEY, 1);
        vm.expectRevert();
        consents.grantBySig(r, hex"00");
        (uint256 x, uint256 y) = vm.publicKeyP256(KEY);
        bytes memory short = abi.encode(x, y, bytes32(uint256(1)), bytes32(uint256(1)), new bytes(36), "");
        vm.expectRevert();
        consents.grantBySig(r, short);
    }

    function testFuzz_grantBySig_by_passkey_over_this_message_alone(uint256 seed, uint256 rest, bytes32 other) public {
        uint256 key = within(seed, 1, P256_ORDER - 1);
        IConsentRegistry.GrantRequest memory r = passkeyRequest(key, rest);
        Spoiled memory how = good();
        how.key = key;
        bytes memory foreign = assertion(other, how);
        bytes memory own = assertion(consents.grantDigest(r), how);
        vm.expectRevert();
        consents.grantBySig(r, foreign);
        consents.grantBySig(r, own);
        yes(consents.isGranted(idOf(r)), "granted");
    }
}
