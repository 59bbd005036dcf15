// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {IConsentRegistry} from "src/interfaces/IConsentRegistry.sol";
import {Base} from "../Base.sol";
import {Relay} from "../actors/Relay.sol";

contract ConsentsInvariants is Base {
    Relay private _relay;

    function setUp() public override {
        super.setUp();
        _relay = new Relay(consents);
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_relay);
    }

    /// @dev The live count is the number of ids granted in the present epoch and not revoked, whatever happened.
    function invariant_grantedCount_counts_what_lives() external view {
        for (uint256 who = 0; who < 4; ++who) {
            address patient = _relay.patientOf(who);
            uint256 live;
            for (uint256 i = 0; i < _relay.count(); ++i) {
                (address owner,,,,, uint64 epoch, IConsentRegistry.State state) = _relay.books(i);
                if (
                    owner == patient && state == IConsentRegistry.State.Granted && epoch == _relay.epochs(patient)
                ) ++live;
            }
            eq(consents.grantedCount(patient), live);
            eq(consents.epochOf(patient), _relay.epochs(patient));
        }
    }

    /// @dev A grant is in force exactly when it was granted, in this epoch, not revoked, and its time is now.
    function invariant_isGranted_is_what_the_books_say() external view {
        for (uint256 i = 0; i < _relay.count(); ++i) {
            (
                address patient,
                bytes32 grantee,
                bytes32 termsHash,
                uint64 from,
                uint64 until,
                uint64 epoch,
                IConsentRegistry.State state
            ) = _relay.books(i);
            bool expected = state == IConsentRegistry.State.Granted && epoch == _relay.epochs(patient)
                && from <= block.timestamp && block.timestamp < until;
            yes(consents.isGranted(patient, grantee, termsHash) == expected, "in force");
            yes(consents.grantOf(consents.grantIdOf(patient, grantee, termsHash)).state == state, "state");
        }
    }

    /// @dev What was relayed once cannot be relayed again.
    function invariant_spent_nonces_stay_spent() external view {
        for (uint256 i = 0; i < _relay.spentCount(); ++i) {
            uint256 nonce = _relay.spent(i);
            bool used;
            for (uint256 who = 0; who < 4; ++who) {
                if (consents.isNonceUsed(_relay.patientOf(who), nonce)) used = true;
            }
            yes(used, "nonce");
        }
    }
}
