// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {IHospitalRegistry} from "src/interfaces/IHospitalRegistry.sol";
import {Base} from "../Base.sol";
import {Consortium} from "../actors/Consortium.sol";

contract ConsortiumInvariants is Base {
    Consortium private _consortium;

    function setUp() public override {
        super.setUp();
        _consortium = new Consortium(members, anchors);
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_consortium);
    }

    /// @dev The list, the member flags and who acts for whom agree, and somebody is always left.
    function invariant_membership_agrees_with_itself() external view {
        address[] memory list = members.members();
        yes(list.length > 0, "somebody is left");
        uint256 flagged;
        for (uint256 who = 0; who < 8; ++who) {
            address account = _consortium.account(who);
            if (members.isMember(account)) ++flagged;
            address actsFor = members.memberOf(account);
            yes(actsFor == address(0) || members.isMember(actsFor), "acts for a member");
            yes(!members.isMember(account) || actsFor == account, "a member acts for itself");
        }
        eq(flagged, list.length);
        for (uint256 i = 0; i < list.length; ++i) {
            yes(members.isMember(list[i]), "the list holds members");
            address[] memory operators = members.operatorsOf(list[i]);
            yes(operators.length <= 16, "operators are bounded");
            for (uint256 j = 0; j < operators.length; ++j) {
                eq(members.memberOf(operators[j]), list[i]);
            }
        }
    }

    /// @dev Nothing passes without more than half of the members there were, nothing closes without its votes.
    function invariant_proposals_pass_by_more_than_half() external view {
        for (uint256 id = 1; id <= members.proposalCount(); ++id) {
            IHospitalRegistry.Proposal memory p = members.proposal(id);
            if (_consortium.electorates(id) != 0) eq(p.electorate, _consortium.electorates(id));
            yes(p.ayes + p.nays <= p.electorate, "no more votes than voters");
            yes((p.outcome == IHospitalRegistry.Outcome.Passed) == (2 * p.ayes > p.electorate), "passed");
            yes((p.outcome == IHospitalRegistry.Outcome.Refused) == (2 * p.nays >= p.electorate), "refused");
        }
    }

    /// @dev Each custodian's head is the hash chain of exactly its own accepted batches.
    function invariant_heads_are_chains() external view {
        for (uint256 who = 0; who < 8; ++who) {
            address account = _consortium.account(who);
            eq(anchors.head(account), _consortium.heads(account));
        }
    }
}
