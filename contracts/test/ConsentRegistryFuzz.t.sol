// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {ConsentRegistry} from "src/ConsentRegistry.sol";
import {IConsentRegistry} from "src/interfaces/IConsentRegistry.sol";
import {Base} from "./Base.sol";

contract ConsentRegistryFuzzTest is Base {
    uint256 private constant KEY = 0xA11;

    function signedGrant(IConsentRegistry.GrantRequest memory r, uint256 key) private {
        bytes memory signature = ecdsa(key, consents.grantDigest(r));
        vm.prank(HOSPITAL);
        consents.grantBySig(r, signature);
    }

    function testFuzz_grantBySig_isGranted_grantOf_grantIdOf_isNonceUsed_keep_what_was_signed(
        uint256 seed,
        IConsentRegistry.GrantRequest memory r,
        uint8 kind
    ) public {
        uint256 key = secret(seed);
        r.patient = vm.addr(key);
        r.validFrom = uint32(r.validFrom);
        r.validUntil = uint64(within(r.validUntil, uint256(r.validFrom > NOW ? r.validFrom : NOW) + 1, type(uint64).max));
        r.deadline = uint64(within(r.deadline, NOW, type(uint64).max));
        r.epoch = 0;
        r.nonce = nonceOf([IConsentRegistry.SignerKind.Wallet, IConsentRegistry.SignerKind.Custodial, IConsentRegistry.SignerKind.Attested][kind % 3], r.nonce);
        signedGrant(r, key);
        bytes32 id = consents.grantIdOf(r.patient, r.grantee, r.termsHash);
        eq(id, idOf(r));
        IConsentRegistry.GrantView memory stored = consents.grantOf(id);
        eq(stored.patient, r.patient);
        eq(stored.validFrom, r.validFrom);
        eq(stored.validUntil, r.validUntil > type(uint40).max ? type(uint40).max : r.validUntil);
        eq(uint256(stored.kind), r.nonce >> 248);
        yes(consents.isGranted(id) == (r.validFrom <= NOW), "in force from its first second");
        yes(consents.isGranted(r.patient, r.grantee, r.termsHash) == consents.isGranted(id), "two views, one answer");
        yes(consents.isNonceUsed(r.patient, r.nonce), "nonce");
        no(consents.isNonceUsed(r.patient, r.nonce ^ 1), "its neighbour");
        bytes memory again = ecdsa(key, consents.grantDigest(r));
        vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.NonceUsed.selector, r.patient, r.nonce));
        vm.prank(HOSPITAL);
        consents.grantBySig(r, again);
    }

    function testFuzz_grantBySig_grantDigest_change_of_any_field_is_refused(uint8 field, bytes32 value, uint256 rest)
        public
    {
        IConsentRegistry.GrantRequest memory r = request(vm.addr(KEY), nonceOf(IConsentRegistry.SignerKind.Wallet, rest));
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        bytes32 before = keccak256(abi.encode(r));
        uint256 which = field % 8;
        if (which == 0) r.patient = address(uint160(uint256(value)));
        if (which == 1) r.grantee = value;
        if (which == 2) r.termsHash = value;
        if (which == 3) r.validFrom = uint32(uint256(value));
        if (which == 4) r.validUntil = uint64(uint256(value));
        if (which == 5) r.nonce = uint256(value);
        if (which == 6) r.deadline = uint64(uint256(value));
        if (which == 7) r.epoch = uint64(uint256(value));
        vm.assume(keccak256(abi.encode(r)) != before);
        vm.expectRevert();
        vm.prank(HOSPITAL);
        consents.grantBySig(r, signature);
        no(consents.isNonceUsed(r.patient, r.nonce), "nothing happened");
    }

    function testFuzz_grantBySig_garbage_is_refused(bytes memory signature, uint8 kind) public {
        IConsentRegistry.GrantRequest memory r = request(vm.addr(KEY), uint256(kind) << 248);
        vm.expectRevert();
        vm.prank(HOSPITAL);
        consents.grantBySig(r, signature);
        eq(consents.grantedCount(r.patient), 0);
    }

    function testFuzz_grant_refuses_exactly_the_empty_and_the_past(uint64 from, uint64 until, uint64 time) public {
        vm.warp(time);
        bool refused = until <= from || until <= time || from > type(uint32).max;
        if (refused) vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.InvalidPeriod.selector, from, until, time));
        vm.prank(STRANGER);
        consents.grant("g", "t", from, until);
        yes(consents.grantedCount(STRANGER) == (refused ? 0 : 1), "granted or not");
    }

    function testFuzz_grantBatchBySig_revokeBatchBySig_grantedCount(uint8 size, uint8 revoked, uint8 spoiled) public {
        uint256 count = within(size, 1, 12);
        IConsentRegistry.GrantRequest[] memory requests = new IConsentRegistry.GrantRequest[](count);
        bytes[] memory signatures = new bytes[](count);
        for (uint256 i = 0; i < count; ++i) {
            requests[i] = request(vm.addr(KEY), i);
            signatures[i] = ecdsa(KEY, consents.grantDigest(requests[i]));
        }
        signatures[spoiled % count][7] ^= 0x01;
        vm.expectRevert();
        consents.grantBatchBySig(requests, signatures);
        eq(consents.grantedCount(vm.addr(KEY)), 0);
        signatures[spoiled % count][7] ^= 0x01;
        consents.grantBatchBySig(requests, signatures);
        eq(consents.grantedCount(vm.addr(KEY)), count);

        uint256 ended = revoked % (count + 1);
        IConsentRegistry.RevokeRequest[] memory ends = new IConsentRegistry.RevokeRequest[](ended);
        bytes[] memory endSignatures = new bytes[](ended);
        for (uint256 i = 0; i < ended; ++i) {
            ends[i] = revocation(requests[i], 1000 + i);
            endSignatures[i] = ecdsa(KEY, consents.revokeDigest(ends[i]));
        }
        consents.revokeBatchBySig(ends, endSignatures);
        eq(consents.grantedCount(vm.addr(KEY)), count - ended);
        for (uint256 i = 0; i < count; ++i) {
            yes(consents.isGranted(idOf(requests[i])) == (i >= ended), "the others stay");
        }
    }

    function testFuzz_revokeBySig_revokeDigest_by_none_but_the_patient(uint256 seed, bytes32 grantee, uint256 rest) public {
        uint256 key = secret(seed);
        vm.assume(key != KEY);
        IConsentRegistry.GrantRequest memory r = request(vm.addr(KEY), 1);
        r.grantee = grantee;
        signedGrant(r, KEY);
        IConsentRegistry.RevokeRequest memory end =
            revocation(r, nonceOf(IConsentRegistry.SignerKind.Wallet, rest | 2));
        bytes memory foreign = ecdsa(key, consents.revokeDigest(end));
        bytes memory own = ecdsa(KEY, consents.revokeDigest(end));
        vm.assume(!consents.isNonceUsed(r.patient, end.nonce));
        vm.expectRevert(
            abi.encodeWithSelector(
                IConsentRegistry.InvalidSignature.selector, r.patient, uint8(0), consents.revokeDigest(end)
            )
        );
        consents.revokeBySig(end, foreign);
        consents.revokeBySig(end, own);
        no(consents.isGranted(idOf(r)), "revoked");
        yes(consents.grantOf(idOf(r)).state == IConsentRegistry.State.Revoked, "for good");
    }

    function testFuzz_revoke_ends_only_the_callers(address caller, bytes32 grantee, bytes32 termsHash) public {
        vm.assume(caller != STRANGER);
        vm.prank(STRANGER);
        bytes32 id = consents.grant(grantee, termsHash, NOW, NOW + 1);
        vm.prank(caller);
        consents.revoke(grantee, termsHash);
        yes(consents.isGranted(id), "another's stays");
        vm.prank(STRANGER);
        consents.revoke(grantee, termsHash);
        no(consents.isGranted(id), "one's own ends");
    }

    function testFuzz_grantBySig_counts_in_the_epoch_it_was_signed_for_alone(uint8 before, uint64 signedFor) public {
        address patient = vm.addr(KEY);
        uint64 epoch = uint64(within(before, 0, 5));
        signedFor = signedFor % 8 == 7 ? signedFor : signedFor % 8;
        IConsentRegistry.GrantRequest memory r = request(patient, 1);
        r.epoch = signedFor;
        bytes memory signature = ecdsa(KEY, consents.grantDigest(r));
        vm.startPrank(patient);
        for (uint64 i = 0; i < epoch; ++i) consents.revokeAll();
        vm.stopPrank();
        if (signedFor != epoch) {
            vm.expectRevert(
                abi.encodeWithSelector(IConsentRegistry.EpochMismatch.selector, patient, signedFor, epoch)
            );
        }
        consents.grantBySig(r, signature);
        yes(consents.isGranted(idOf(r)) == (signedFor == epoch), "in its epoch alone");
    }

    function testFuzz_revokeAllBySig_revokeAll_revokeAllDigest_epochOf(uint8 times, uint64 wrong, bool direct) public {
        address patient = vm.addr(KEY);
        uint256 count = within(times, 1, 6);
        for (uint64 i = 0; i < count; ++i) {
            IConsentRegistry.GrantRequest memory r = request(patient, 2 * i);
            r.epoch = i;
            signedGrant(r, KEY);
            IConsentRegistry.RevokeAllRequest memory all =
                IConsentRegistry.RevokeAllRequest(patient, wrong, 2 * i + 1, NOW);
            if (wrong != i) {
                bytes memory early = ecdsa(KEY, consents.revokeAllDigest(all));
                vm.expectRevert(abi.encodeWithSelector(IConsentRegistry.EpochMismatch.selector, patient, wrong, i));
                consents.revokeAllBySig(all, early);
            }
            all.epoch = i;
            if (direct) {
                vm.prank(patient);
                consents.revokeAll();
            } else {
                consents.revokeAllBySig(all, ecdsa(KEY, consents.revokeAllDigest(all)));
            }
            no(consents.isGranted(idOf(r)), "over");
            eq(consents.grantedCount(patient), 0);
            eq(consents.epochOf(patient), i + 1);
        }
        eq(consents.epochOf(STRANGER), 0);
    }

    function testFuzz_cancelNonces_isNonceUsed_only_the_callers(uint256 word, uint256 first, uint256 second, uint8 bit)
        public
    {
        word &= type(uint256).max >> 8;
        vm.startPrank(STRANGER);
        consents.cancelNonces(word, first);
        consents.cancelNonces(word, second);
        uint256 nonce = (word << 8) | bit;
        yes(consents.isNonceUsed(STRANGER, nonce) == ((first | second) >> bit & 1 == 1), "exactly the mask");
        no(consents.isNonceUsed(HOSPITAL, nonce), "nobody else's");
    }

    function testFuzz_domainSeparator_eip712Domain_registry_follow_the_chain(uint64 chain) public {
        vm.assume(chain != 0);
        bytes32 here = consents.domainSeparator();
        vm.assume(chain != block.chainid);
        vm.chainId(chain);
        yes(consents.domainSeparator() != here, "a fork has its own domain");
        (,,, uint256 said,,,) = consents.eip712Domain();
        eq(said, chain);
        ConsentRegistry another = new ConsentRegistry(members);
        yes(another.domainSeparator() != consents.domainSeparator(), "so has another contract");
        eq(another.registry(), consents.registry());
    }
}
