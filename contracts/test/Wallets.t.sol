// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {IConsentRegistry} from "src/interfaces/IConsentRegistry.sol";
import {OwnedWallet, Plain, ReentrantWallet, ShortWallet} from "./actors/Wallets.sol";
import {Base} from "./Base.sol";

/// @dev Patients whose address has code: ERC-1271 and EIP-7702.
contract WalletsTest is Base {
    uint256 private constant KEY = 0xA11;

    function signedFor(address patient, uint256 nonce)
        private
        view
        returns (IConsentRegistry.GrantRequest memory r, bytes memory signature)
    {
        r = request(patient, nonce);
        signature = ecdsa(KEY, consents.grantDigest(r));
    }

    function test_grantBySig_asks_the_contract_wallet_and_keeps_its_answer() public {
        OwnedWallet wallet = new OwnedWallet(vm.addr(KEY));
        (IConsentRegistry.GrantRequest memory r, bytes memory signature) = signedFor(address(wallet), 1);
        consents.grantBySig(r, signature);
        wallet.pass(STRANGER);
        yes(consents.isGranted(idOf(r)), "the outcome is stored");
        (r, signature) = signedFor(address(wallet), 2);
        vm.expectRevert();
        consents.grantBySig(r, signature);
        wallet.revokeAll(consents);
        eq(consents.grantedCount(address(wallet)), 0);
    }

    function test_grantBySig_custodial_never_asks_a_contract() public {
        OwnedWallet wallet = new OwnedWallet(vm.addr(KEY));
        (IConsentRegistry.GrantRequest memory r, bytes memory signature) =
            signedFor(address(wallet), nonceOf(IConsentRegistry.SignerKind.Custodial, 1));
        vm.expectRevert();
        vm.prank(HOSPITAL);
        consents.grantBySig(r, signature);
    }

    function test_grantBySig_wallets_that_reenter_or_mumble_are_refused() public {
        address[3] memory wallets =
            [address(new ReentrantWallet(consents)), address(new ShortWallet()), address(new Plain())];
        for (uint256 i = 0; i < wallets.length; ++i) {
            (IConsentRegistry.GrantRequest memory r, bytes memory signature) = signedFor(wallets[i], 1);
            vm.expectRevert(
                abi.encodeWithSelector(
                    IConsentRegistry.InvalidSignature.selector, r.patient, uint8(0), consents.grantDigest(r)
                )
            );
            consents.grantBySig(r, signature);
        }
    }

    /// @dev EIP-7702: the delegated code has no ERC-1271, and the account's key must still count.
    function testFuzz_grantBySig_delegated_account_signs_with_its_key(uint256 seed, address target) public {
        uint256 key = secret(seed);
        address patient = vm.addr(key);
        vm.etch(patient, abi.encodePacked(hex"ef0100", target));
        IConsentRegistry.GrantRequest memory r = request(patient, 1);
        consents.grantBySig(r, ecdsa(key, consents.grantDigest(r)));
        yes(consents.isGranted(idOf(r)), "granted");
        r = request(patient, 2);
        bytes memory foreign = ecdsa(key == 1 ? 2 : 1, consents.grantDigest(r));
        vm.expectRevert();
        consents.grantBySig(r, foreign);
    }

    /// @dev Code that only looks like a delegation by length does not let a key in.
    function testFuzz_grantBySig_other_code_shuts_the_key_out(bytes23 code) public {
        vm.assume(bytes3(code) != 0xef0100);
        address patient = vm.addr(KEY);
        vm.etch(patient, abi.encodePacked(hex"fe", bytes22(code)));
        (IConsentRegistry.GrantRequest memory r, bytes memory signature) = signedFor(patient, 1);
        vm.expectRevert();
        consents.grantBySig(r, signature);
    }
}
