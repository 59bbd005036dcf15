// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {ConsentRegistry} from "src/ConsentRegistry.sol";
import {IConsentRegistry} from "src/interfaces/IConsentRegistry.sol";
import {IHospitalRegistry} from "src/interfaces/IHospitalRegistry.sol";
import {Base} from "./Base.sol";

/// @dev Grants and revocations by an ordinary key. Contract wallets: Wallets.t.sol. Passkeys: Passkey.t.sol.
contract ConsentRegistryTest is Base {
    uint256 private constant KEY = 0xA11;
    uint256 private constant OTHER_KEY = 0xB22;
    IConsentRegistry.SignerKind private constant WALLET = IConsentRegistry.SignerKind.Wallet;

    function patient() private pure returns (address) {
        return vm.addr(KEY);
    }

    function granted(uint256 nonce) private returns (IConsentRegistry.GrantRequest memory r) {
        r = request(patient(), nonce);
        consents.grantBySig(r, ecdsa(KEY, consents.grantDigest(r)));
    }

    function revoke(IConsentRegistry.RevokeRequest memory r) private {
        consents.revokeBySig(r, ecdsa(KEY, consents.revokeDigest(r)));
    }

    // -- granting

    function test_grantBySig_isGranted_grantOf_and_says_everything() public {
        IConsentRegistry.GrantRequest memory r = request(patient(), 1);
        vm.expectEmit(true, true, true, true);
        emit IConsentRegistry.Granted(
            r.patient, idOf(r), HOSPITAL, r.grantee, r.termsHash, r.validFrom, r.validUntil, 0, 0
        );
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        vm.prank(HOSPITAL);
        eq(consents.grantBySig(r, signature), idOf(r));
        yes(consents.isGranted(idOf(r)), "granted by id");
        yes(consents.isGranted(r.patient, r.grantee, r.termsHash), "granted by parts");
        IConsentRegistry.GrantView memory stored = consents.grantOf(idOf(r));
        eq(stored.patient, r.patient);
        yes(stored.state == IConsentRegistry.State.Granted && stored.kind == WALLET, "state and kind");
        eq(stored.validFrom, r.validFrom);
        eq(stored.validUntil, r.validUntil);
        eq(stored.epoch, 0);
        eq(consents.grantedCount(r.patient), 1);
    }

    function test_grantBySig_relayed_by_a_stranger_names_no_custodian() public {
        IConsentRegistry.GrantRequest memory r = request(patient(), 1);
        vm.expectEmit(true, true, true, true);
        emit IConsentRegistry.Granted(
            r.patient, idOf(r), address(0), r.grantee, r.termsHash, r.validFrom, r.validUntil, 0, 0
        );
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        vm.prank(STRANGER);
        consents.grantBySig(r, signature);
    }

    function test_grantBySig_custodial_and_attested_only_from_a_member() public {
        for (uint256 kind = 1; kind <= 3; kind += 2) {
            IConsentRegistry.GrantRequest memory r = request(patient(), kind << 248);
            bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
            vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.NotMember.selector, STRANGER));
            vm.prank(STRANGER);
            consents.grantBySig(r, signature);
            vm.prank(HOSPITAL);
            consents.grantBySig(r, signature);
            eq(uint256(consents.grantOf(idOf(r)).kind), kind);
        }
    }

    function test_grantBySig_kind_cannot_be_changed_by_the_relay() public {
        IConsentRegistry.GrantRequest memory r = request(patient(), uint256(1) << 248);
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        r.nonce = 0;
        vm.expectRevert(
            abi.encodeWithSelector(
                IConsentRegistry.InvalidSignature.selector, r.patient, uint8(0), consents.grantDigest(r)
            )
        );
        consents.grantBySig(r, signature);
    }

    function test_grantBySig_refuses_an_unknown_kind() public {
        IConsentRegistry.GrantRequest memory r = request(patient(), uint256(4) << 248);
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.SignerKindUnknown.selector, uint8(4)));
        consents.grantBySig(r, signature);
    }

    function test_grantBySig_refuses_a_second_use() public {
        IConsentRegistry.GrantRequest memory r = granted(5);
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.NonceUsed.selector, r.patient, r.nonce));
        consents.grantBySig(r, signature);
    }

    function test_grantBySig_refuses_after_the_deadline_and_takes_it_at_the_deadline() public {
        IConsentRegistry.GrantRequest memory r = request(patient(), 5);
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        vm.warp(r.deadline + 1);
        vm.expectRevert(
            abi.encodeWithSelector(IConsentRegistry.SignatureExpired.selector, r.deadline, r.deadline + 1)
        );
        consents.grantBySig(r, signature);
        vm.warp(r.deadline);
        consents.grantBySig(r, signature);
    }

    function test_grantBySig_is_bound_to_chain_and_contract() public {
        IConsentRegistry.GrantRequest memory r = request(patient(), 5);
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        ConsentRegistry successor = new ConsentRegistry(members);
        vm.expectRevert();
        successor.grantBySig(r, signature);
        vm.chainId(77);
        vm.expectRevert();
        consents.grantBySig(r, signature);
    }

    function test_grantBySig_malleable_twin_is_refused() public {
        IConsentRegistry.GrantRequest memory r = request(patient(), 5);
        (uint8 v, bytes32 half, bytes32 s) = vm.sign(KEY, consents.grantDigest(r));
        bytes memory twin = abi.encodePacked(half, bytes32(ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
        vm.expectRevert();
        consents.grantBySig(r, twin);
    }

    function test_grant_by_the_patient_itself() public {
        vm.prank(patient());
        bytes32 id = consents.grant("g", "t", NOW, NOW + 1);
        yes(consents.isGranted(id), "granted");
        eq(id, consents.grantIdOf(patient(), "g", "t"));
        vm.expectRevert(
            abi.encodeWithSelector(IConsentRegistry.GrantExists.selector, id, IConsentRegistry.State.Granted)
        );
        vm.prank(patient());
        consents.grant("g", "t", NOW, NOW + 1);
    }

    function test_grant_refuses_what_could_never_be_in_force() public {
        uint64[2][4] memory periods =
            [[NOW, NOW], [NOW + 2, NOW + 1], [NOW - 10, NOW], [uint64(1) << 32, uint64(1) << 39]];
        for (uint256 i = 0; i < periods.length; ++i) {
            (uint64 from, uint64 until) = (periods[i][0], periods[i][1]);
            vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.InvalidPeriod.selector, from, until, NOW));
            vm.prank(patient());
            consents.grant("g", "t", from, until);
        }
    }

    function test_isGranted_from_the_first_second_until_before_the_last() public {
        vm.prank(patient());
        bytes32 id = consents.grant("g", "t", NOW + 10, NOW + 20);
        no(consents.isGranted(id), "not yet");
        vm.warp(NOW + 10);
        yes(consents.isGranted(id), "first second");
        vm.warp(NOW + 19);
        yes(consents.isGranted(id), "last second");
        vm.warp(NOW + 20);
        no(consents.isGranted(id), "over");
        eq(consents.grantedCount(patient()), 1);
    }

    function test_isGranted_without_end() public {
        vm.prank(patient());
        bytes32 id = consents.grant("g", "t", NOW, type(uint64).max);
        vm.warp(uint256(type(uint64).max));
        yes(consents.isGranted(id), "without end");
        eq(consents.grantOf(id).validUntil, type(uint40).max);
    }

    function test_grantBatchBySig_all_or_none() public {
        IConsentRegistry.GrantRequest[] memory requests = new IConsentRegistry.GrantRequest[](3);
        bytes[] memory signatures = new bytes[](3);
        for (uint256 i = 0; i < 3; ++i) {
            uint256 key = i == 1 ? OTHER_KEY : KEY;
            requests[i] = request(vm.addr(key), i);
            signatures[i] = ecdsa(key, consents.grantDigest(requests[i]));
        }
        bytes memory good = signatures[2];
        signatures[2] = signatures[1];
        vm.expectRevert();
        consents.grantBatchBySig(requests, signatures);
        no(consents.isGranted(idOf(requests[0])), "none");
        signatures[2] = good;
        consents.grantBatchBySig(requests, signatures);
        for (uint256 i = 0; i < 3; ++i) {
            yes(consents.isGranted(idOf(requests[i])), "all");
        }
        eq(consents.grantedCount(patient()), 2);
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.LengthMismatch.selector, 3, 0));
        consents.grantBatchBySig(requests, new bytes[](0));
    }

    // -- revoking

    function test_revokeBySig_ends_the_grant_for_good() public {
        IConsentRegistry.GrantRequest memory r = granted(1);
        vm.expectEmit(true, true, false, true);
        emit IConsentRegistry.Revoked(r.patient, idOf(r), r.grantee, r.termsHash);
        revoke(revocation(r, 2));
        no(consents.isGranted(idOf(r)), "revoked");
        eq(consents.grantedCount(r.patient), 0);
        r.nonce = 3;
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        vm.expectRevert(
            abi.encodeWithSelector(IConsentRegistry.GrantExists.selector, idOf(r), IConsentRegistry.State.Revoked)
        );
        consents.grantBySig(r, signature);
        IConsentRegistry.RevokeRequest memory again = revocation(r, 4);
        signature = ecdsa(KEY, consents.revokeDigest(again));
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.AlreadyRevoked.selector, idOf(r)));
        consents.revokeBySig(again, signature);
    }

    function test_revokeBySig_before_the_grant_arrives_keeps_it_out() public {
        IConsentRegistry.GrantRequest memory r = request(patient(), 1);
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        revoke(revocation(r, 2));
        vm.expectRevert(
            abi.encodeWithSelector(IConsentRegistry.GrantExists.selector, idOf(r), IConsentRegistry.State.Revoked)
        );
        consents.grantBySig(r, signature);
        eq(consents.grantedCount(patient()), 0);
    }

    function test_revokeBySig_by_another_patient_touches_nothing() public {
        IConsentRegistry.GrantRequest memory r = granted(1);
        IConsentRegistry.RevokeRequest memory theirs = revocation(r, 2);
        bytes memory signature = ecdsa(OTHER_KEY, consents.revokeDigest(theirs));
        vm.expectRevert(
            abi.encodeWithSelector(
                IConsentRegistry.InvalidSignature.selector, r.patient, uint8(0), consents.revokeDigest(theirs)
            )
        );
        consents.revokeBySig(theirs, signature);
        vm.prank(vm.addr(OTHER_KEY));
        consents.revoke(r.grantee, r.termsHash);
        yes(consents.isGranted(idOf(r)), "untouched");
    }

    function test_revoke_by_the_patient_itself() public {
        IConsentRegistry.GrantRequest memory r = granted(1);
        vm.prank(patient());
        consents.revoke(r.grantee, r.termsHash);
        no(consents.isGranted(idOf(r)), "revoked");
    }

    function test_revokeBatchBySig_all_or_none() public {
        IConsentRegistry.RevokeRequest[] memory requests = new IConsentRegistry.RevokeRequest[](2);
        bytes[] memory signatures = new bytes[](2);
        for (uint256 i = 0; i < 2; ++i) {
            requests[i] = revocation(granted(i), 10 + i);
            signatures[i] = ecdsa(KEY, consents.revokeDigest(requests[i]));
        }
        consents.revokeBatchBySig(requests, signatures);
        eq(consents.grantedCount(patient()), 0);
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.NonceUsed.selector, patient(), 10));
        consents.revokeBatchBySig(requests, signatures);
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.LengthMismatch.selector, 2, 1));
        consents.revokeBatchBySig(requests, new bytes[](1));
    }

    function test_revokeAllBySig_ends_all_at_once_and_begins_an_epoch() public {
        IConsentRegistry.GrantRequest memory a = granted(1);
        granted(2);
        IConsentRegistry.RevokeAllRequest memory all = IConsentRegistry.RevokeAllRequest(patient(), 0, 3, NOW);
        vm.expectEmit(true, false, false, true);
        emit IConsentRegistry.RevokedAll(patient(), 1);
        consents.revokeAllBySig(all, ecdsa(KEY, consents.revokeAllDigest(all)));
        eq(consents.epochOf(patient()), 1);
        eq(consents.grantedCount(patient()), 0);
        no(consents.isGranted(idOf(a)), "over");
        revoke(revocation(a, 4));
        eq(consents.grantedCount(patient()), 0);
        IConsentRegistry.GrantRequest memory later = request(patient(), 5);
        later.epoch = 1;
        consents.grantBySig(later, ecdsa(KEY, consents.grantDigest(later)));
        yes(consents.isGranted(idOf(later)), "of the new epoch");
        eq(consents.grantedCount(patient()), 1);
        eq(consents.grantOf(idOf(later)).epoch, 1);
        all.nonce = 6;
        bytes memory signature = ecdsa(KEY, consents.revokeAllDigest(all));
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.EpochMismatch.selector, patient(), 0, 1));
        consents.revokeAllBySig(all, signature);
    }

    function test_grantBySig_signed_before_a_revoke_all_and_held_back_ended_with_it() public {
        IConsentRegistry.GrantRequest memory held = request(patient(), 1);
        bytes memory signature = ecdsa(KEY, consents.grantDigest(held));
        vm.prank(patient());
        consents.revokeAll();
        bytes memory refusal = abi.encodeWithSelector(IConsentRegistry.EpochMismatch.selector, patient(), 0, 1);
        vm.expectRevert(refusal);
        consents.grantBySig(held, signature);
        IConsentRegistry.GrantRequest[] memory requests = new IConsentRegistry.GrantRequest[](1);
        bytes[] memory signatures = new bytes[](1);
        (requests[0], signatures[0]) = (held, signature);
        vm.expectRevert(refusal);
        consents.grantBatchBySig(requests, signatures);
        no(consents.isNonceUsed(patient(), 1), "nothing happened");
        held.epoch = 1;
        bytes32 digest = consents.grantDigest(held);
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.InvalidSignature.selector, patient(), 0, digest));
        consents.grantBySig(held, signature);
        consents.grantBySig(held, ecdsa(KEY, digest));
        yes(consents.isGranted(idOf(held)), "the same terms, signed again");
    }

    function test_grantBySig_signed_for_an_epoch_to_come_waits_for_it() public {
        IConsentRegistry.GrantRequest memory early = request(patient(), 1);
        early.epoch = 1;
        bytes memory signature = ecdsa(KEY, consents.grantDigest(early));
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.EpochMismatch.selector, patient(), 1, 0));
        consents.grantBySig(early, signature);
        vm.prank(patient());
        consents.revokeAll();
        consents.grantBySig(early, signature);
        yes(consents.isGranted(idOf(early)), "granted");
    }

    function test_revokeAll_by_the_patient_itself_until_epochs_run_out() public {
        bytes32 slot = keccak256(abi.encode(patient(), uint256(1)));
        vm.prank(patient());
        consents.revokeAll();
        eq(consents.epochOf(patient()), 1);
        Store(address(vm)).store(address(consents), slot, bytes32(uint256(type(uint16).max)));
        eq(consents.epochOf(patient()), type(uint16).max);
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.EpochsExhausted.selector, patient()));
        vm.prank(patient());
        consents.revokeAll();
    }

    function test_cancelNonces_isNonceUsed_kill_a_signature_given_away() public {
        IConsentRegistry.GrantRequest memory r = request(patient(), 0x102);
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        vm.expectEmit(true, true, false, true);
        emit IConsentRegistry.NoncesCancelled(patient(), 1, 4);
        vm.prank(patient());
        consents.cancelNonces(1, 4);
        yes(consents.isNonceUsed(patient(), 0x102), "cancelled");
        no(consents.isNonceUsed(patient(), 0x101), "its neighbour is not");
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.NonceUsed.selector, patient(), 0x102));
        consents.grantBySig(r, signature);
    }

    // -- views

    function test_domainSeparator_eip712Domain_registry() public {
        (bytes1 fields, string memory name, string memory version, uint256 chain, address at_,,) =
            consents.eip712Domain();
        eq(bytes32(fields), bytes32(hex"0f"));
        eq(
            consents.domainSeparator(),
            keccak256(
                abi.encode(
                    keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                    keccak256(bytes(name)),
                    keccak256(bytes(version)),
                    chain,
                    at_
                )
            )
        );
        eq(at_, address(consents));
        eq(consents.registry(), address(members));
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.RegistryMissing.selector, STRANGER));
        new ConsentRegistry(IHospitalRegistry(STRANGER));
    }

    function test_grantDigest_revokeDigest_revokeAllDigest_grantIdOf_epochOf_differ_in_every_field() public view {
        IConsentRegistry.GrantRequest memory r = request(patient(), 1);
        bytes32 before = consents.grantDigest(r);
        r.validUntil += 1;
        yes(consents.grantDigest(r) != before, "validUntil");
        before = consents.grantDigest(r);
        r.epoch = 1;
        yes(consents.grantDigest(r) != before, "epoch of a grant");
        yes(consents.revokeDigest(revocation(r, 1)) != consents.revokeDigest(revocation(r, 2)), "nonce");
        IConsentRegistry.RevokeAllRequest memory all = IConsentRegistry.RevokeAllRequest(patient(), 0, 3, NOW);
        before = consents.revokeAllDigest(all);
        all.epoch = 1;
        yes(consents.revokeAllDigest(all) != before, "epoch");
        eq(consents.grantIdOf(r.patient, r.grantee, r.termsHash), idOf(r));
        eq(consents.epochOf(patient()), 0);
    }

    function test_grantedCount_isNonceUsed_of_an_unknown_patient() public view {
        eq(consents.grantedCount(STRANGER), 0);
        no(consents.isNonceUsed(STRANGER, 0), "unused");
    }
}

interface Store {
    function store(address target, bytes32 slot, bytes32 value) external;
}
