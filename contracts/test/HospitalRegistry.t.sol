// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {HospitalRegistry} from "src/HospitalRegistry.sol";
import {IHospitalRegistry} from "src/interfaces/IHospitalRegistry.sol";
import {Base} from "./Base.sol";

contract HospitalRegistryTest is Base {
    bytes32 private constant DIGEST = keccak256("endpoint document");
    address private constant THIRD = address(0xCAFE);


    function outcome(uint256 id) private view returns (IHospitalRegistry.Outcome) {
        return members.proposal(id).outcome;
    }

    function refused(bytes4 selector, address who) private {
        vm.expectRevert(abi.encodeWithSelector(selector, who));
    }

    // -- membership

    function test_members_begin_with_the_deployer() public view {
        address[] memory list = members.members();
        eq(list.length, 1);
        eq(list[0], HOSPITAL);
        yes(members.isMember(HOSPITAL) && members.isOperator(HOSPITAL), "the first member");
        eq(members.memberOf(HOSPITAL), HOSPITAL);
        eq(members.endpointOf(HOSPITAL), keccak256("endpoint of the first"));
        eq(members.proposalCount(), 0);
    }

    function test_proposeAdmission_by_the_only_member_admits_at_once() public {
        vm.expectEmit(true, true, false, true);
        emit IHospitalRegistry.MemberAdmitted(OTHER, DIGEST);
        vm.prank(HOSPITAL);
        uint256 id = members.proposeAdmission(OTHER, DIGEST);
        eq(id, 1);
        yes(outcome(id) == IHospitalRegistry.Outcome.Passed, "passed");
        yes(members.isMember(OTHER), "admitted");
        eq(members.endpointOf(OTHER), DIGEST);
    }

    function test_proposeAdmission_refuses_strangers_members_and_nobody() public {
        refused(IHospitalRegistry.NotMember.selector, STRANGER);
        vm.prank(STRANGER);
        members.proposeAdmission(OTHER, DIGEST);
        vm.startPrank(HOSPITAL);
        refused(IHospitalRegistry.AlreadyMember.selector, HOSPITAL);
        members.proposeAdmission(HOSPITAL, DIGEST);
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.AddressMissing.selector));
        members.proposeAdmission(address(0), DIGEST);
    }

    function test_proposeAdmission_frees_an_account_another_member_took_as_operator() public {
        vm.startPrank(HOSPITAL);
        members.addOperator(OTHER);
        members.proposeAdmission(OTHER, DIGEST);
        eq(members.memberOf(OTHER), OTHER);
        eq(members.operatorsOf(HOSPITAL).length, 0);
    }

    function test_proposeRemoval_needs_more_than_half_and_takes_the_operators_too() public {
        admit(OTHER);
        admit(THIRD);
        vm.prank(THIRD);
        members.addOperator(STRANGER);
        vm.prank(HOSPITAL);
        uint256 id = members.proposeRemoval(THIRD);
        yes(members.isMember(THIRD), "one of three is not enough");
        vm.expectEmit(true, false, false, true);
        emit IHospitalRegistry.OperatorRemoved(THIRD, STRANGER);
        vm.prank(OTHER);
        members.vote(id, true);
        no(members.isMember(THIRD) || members.isOperator(THIRD) || members.isOperator(STRANGER), "gone");
        eq(members.endpointOf(THIRD), bytes32(0));
        eq(members.members().length, 2);
        refused(IHospitalRegistry.NotMember.selector, THIRD);
        vm.prank(HOSPITAL);
        members.proposeRemoval(THIRD);
    }

    function test_proposeRemoval_of_the_last_member_is_refused() public {
        refused(IHospitalRegistry.LastMember.selector, HOSPITAL);
        vm.prank(HOSPITAL);
        members.proposeRemoval(HOSPITAL);
    }

    function test_proposeRemoval_between_two_decides_nothing() public {
        admit(OTHER);
        vm.prank(HOSPITAL);
        uint256 id = members.proposeRemoval(OTHER);
        vm.prank(OTHER);
        members.vote(id, false);
        yes(outcome(id) == IHospitalRegistry.Outcome.Refused, "refused");
        yes(members.isMember(OTHER), "stays");
    }

    function test_proposeSuccessor_successorOf_names_the_next_contract() public {
        eq(members.successorOf("RecordAnchor"), address(0));
        vm.expectEmit(true, true, false, true);
        emit IHospitalRegistry.SuccessorNamed("RecordAnchor", THIRD);
        vm.prank(HOSPITAL);
        members.proposeSuccessor("RecordAnchor", THIRD);
        eq(members.successorOf("RecordAnchor"), THIRD);
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.AddressMissing.selector));
        vm.prank(HOSPITAL);
        members.proposeSuccessor("RecordAnchor", address(0));
    }

    function test_resign_leaves_but_not_the_last() public {
        refused(IHospitalRegistry.LastMember.selector, HOSPITAL);
        vm.prank(HOSPITAL);
        members.resign();
        admit(OTHER);
        vm.prank(HOSPITAL);
        members.resign();
        no(members.isMember(HOSPITAL), "left");
        eq(members.members()[0], OTHER);
        refused(IHospitalRegistry.NotMember.selector, HOSPITAL);
        vm.prank(HOSPITAL);
        members.resign();
    }

    // -- voting

    function test_vote_counts_only_members_from_before_it_opened() public {
        admit(OTHER);
        vm.prank(HOSPITAL);
        uint256 id = members.proposeAdmission(STRANGER, DIGEST);
        admit(THIRD);
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.NotInElectorate.selector, id, THIRD));
        vm.prank(THIRD);
        members.vote(id, true);
        eq(members.proposal(id).electorate, 2);
    }

    function test_vote_once_on_what_is_open_and_in_time() public {
        admit(OTHER);
        vm.prank(HOSPITAL);
        uint256 id = members.proposeAdmission(THIRD, DIGEST);
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.AlreadyVoted.selector, id, HOSPITAL));
        vm.prank(HOSPITAL);
        members.vote(id, true);
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.ProposalUnknown.selector, id + 1));
        vm.prank(HOSPITAL);
        members.vote(id + 1, true);
        refused(IHospitalRegistry.NotMember.selector, STRANGER);
        vm.prank(STRANGER);
        members.vote(id, true);
        uint64 closesAt = members.proposal(id).closesAt;
        vm.warp(closesAt);
        vm.expectRevert(
            abi.encodeWithSelector(
                IHospitalRegistry.ProposalNotOpen.selector, id, IHospitalRegistry.Outcome.Open, closesAt
            )
        );
        vm.prank(OTHER);
        members.vote(id, true);
    }

    function test_vote_after_the_decision_is_refused() public {
        admit(OTHER);
        vm.expectRevert(
            abi.encodeWithSelector(
                IHospitalRegistry.ProposalNotOpen.selector, 1, IHospitalRegistry.Outcome.Passed, NOW + 14 days
            )
        );
        vm.prank(OTHER);
        members.vote(1, false);
    }

    function test_vote_by_a_member_readmitted_since_does_not_count_again() public {
        admit(OTHER);
        admit(THIRD);
        vm.prank(OTHER);
        uint256 id = members.proposeRemoval(HOSPITAL);
        vm.prank(OTHER);
        members.resign();
        vm.prank(HOSPITAL);
        uint256 back = members.proposeAdmission(OTHER, DIGEST);
        vm.prank(THIRD);
        members.vote(back, true);
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.NotInElectorate.selector, id, OTHER));
        vm.prank(OTHER);
        members.vote(id, true);
    }

    function test_proposal_proposalCount_say_what_is_asked() public {
        vm.prank(HOSPITAL);
        members.proposeSuccessor("ConsentRegistry", THIRD);
        eq(members.proposalCount(), 1);
        IHospitalRegistry.Proposal memory p = members.proposal(1);
        yes(p.action == IHospitalRegistry.Action.NameSuccessor, "action");
        eq(p.subject, THIRD);
        eq(p.value, "ConsentRegistry");
        eq(p.closesAt, NOW + 14 days);
        eq(p.ayes, 1);
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.ProposalUnknown.selector, 0));
        members.proposal(0);
    }

    // -- operators and endpoints

    function test_setEndpoint_endpointOf_replace_the_digest() public {
        vm.expectEmit(true, false, false, true);
        emit IHospitalRegistry.EndpointChanged(HOSPITAL, DIGEST);
        vm.prank(HOSPITAL);
        members.setEndpoint(DIGEST);
        eq(members.endpointOf(HOSPITAL), DIGEST);
        refused(IHospitalRegistry.NotMember.selector, STRANGER);
        vm.prank(STRANGER);
        members.setEndpoint(DIGEST);
    }

    function test_addOperator_memberOf_operatorsOf_isOperator_isMember() public {
        vm.expectEmit(true, true, false, true);
        emit IHospitalRegistry.OperatorAdded(HOSPITAL, OTHER);
        vm.prank(HOSPITAL);
        members.addOperator(OTHER);
        eq(members.memberOf(OTHER), HOSPITAL);
        eq(members.operatorsOf(HOSPITAL)[0], OTHER);
        yes(members.isOperator(OTHER), "operator");
        no(members.isMember(OTHER), "an operator is no member");
        refused(IHospitalRegistry.NotMember.selector, OTHER);
        vm.prank(OTHER);
        members.addOperator(STRANGER);
    }

    function test_addOperator_refuses_taken_accounts_nobody_and_a_seventeenth() public {
        vm.startPrank(HOSPITAL);
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.AddressMissing.selector));
        members.addOperator(address(0));
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.OperatorTaken.selector, HOSPITAL, HOSPITAL));
        members.addOperator(HOSPITAL);
        for (uint160 i = 1; i <= 16; ++i) {
            members.addOperator(address(i));
        }
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.TooManyOperators.selector, HOSPITAL, 16));
        members.addOperator(address(17));
    }

    function test_removeOperator_takes_it_back_but_not_oneself_or_anothers() public {
        admit(OTHER);
        vm.prank(OTHER);
        members.addOperator(STRANGER);
        vm.startPrank(HOSPITAL);
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.NotOperatorOf.selector, STRANGER, HOSPITAL));
        members.removeOperator(STRANGER);
        vm.expectRevert(abi.encodeWithSelector(IHospitalRegistry.NotOperatorOf.selector, HOSPITAL, HOSPITAL));
        members.removeOperator(HOSPITAL);
        vm.stopPrank();
        vm.prank(OTHER);
        members.removeOperator(STRANGER);
        no(members.isOperator(STRANGER), "dropped");
        eq(members.operatorsOf(OTHER).length, 0);
    }

    // -- fuzz

    function testFuzz_proposeAdmission_proposeRemoval_vote_decide_by_more_than_half(uint8 size, uint256 ballots) public {
        uint256 electorate = within(size, 2, 9);
        for (uint160 i = 1; i < electorate; ++i) {
            admit(address(0x1000 + i));
        }
        address[] memory list = members.members();
        eq(list.length, electorate);
        vm.prank(list[0]);
        uint256 id = members.proposeAdmission(STRANGER, DIGEST);
        (uint256 ayes, uint256 nays) = (1, 0);
        for (uint256 i = 1; i < list.length && outcome(id) == IHospitalRegistry.Outcome.Open; ++i) {
            bool approve = (ballots >> i) & 1 == 1;
            vm.prank(list[i]);
            members.vote(id, approve);
            approve ? ++ayes : ++nays;
        }
        yes(members.isMember(STRANGER) == (ayes * 2 > electorate), "admitted by more than half");
        yes(outcome(id) != IHospitalRegistry.Outcome.Open, "all votes decide");
        vm.prank(list[0]);
        id = members.proposeRemoval(list[1]);
        yes(members.isMember(list[1]) && outcome(id) == IHospitalRegistry.Outcome.Open, "never by one of several");
    }

    function testFuzz_addOperator_removeOperator_memberOf_isOperator_operatorsOf(address[12] memory accounts, uint16 keep)
        public
    {
        uint256 kept;
        for (uint256 i = 0; i < accounts.length; ++i) {
            vm.assume(accounts[i] != address(0) && !members.isOperator(accounts[i]));
            vm.prank(HOSPITAL);
            members.addOperator(accounts[i]);
        }
        for (uint256 i = 0; i < accounts.length; ++i) {
            if ((keep >> i) & 1 == 1) {
                ++kept;
                continue;
            }
            vm.prank(HOSPITAL);
            members.removeOperator(accounts[i]);
        }
        eq(members.operatorsOf(HOSPITAL).length, kept);
        for (uint256 i = 0; i < accounts.length; ++i) {
            bool stays = (keep >> i) & 1 == 1;
            yes(members.isOperator(accounts[i]) == stays, "kept or dropped");
            eq(members.memberOf(accounts[i]), stays ? HOSPITAL : address(0));
        }
    }

    function testFuzz_setEndpoint_endpointOf_members_isMember(address member, bytes32 digest) public {
        vm.assume(member != address(0) && !members.isMember(member));
        admit(member);
        vm.prank(member);
        members.setEndpoint(digest);
        eq(members.endpointOf(member), digest);
        eq(members.endpointOf(HOSPITAL), keccak256("endpoint of the first"));
        yes(members.isMember(member), "admitted");
        eq(members.members()[1], member);
    }

    function testFuzz_proposeSuccessor_successorOf_proposal_proposalCount(bytes32 name, address first, address second)
        public
    {
        vm.assume(first != address(0) && second != address(0));
        vm.startPrank(HOSPITAL);
        eq(members.proposeSuccessor(name, first), 1);
        eq(members.proposeSuccessor(name, second), 2);
        eq(members.successorOf(name), second);
        eq(members.successorOf(~name), address(0));
        eq(members.proposal(1).subject, first);
        eq(members.proposalCount(), 2);
    }

    function testFuzz_resign_members_keep_the_others_until_one_is_left(uint8 size, uint256 order) public {
        uint256 count = within(size, 2, 8);
        for (uint160 i = 1; i < count; ++i) {
            admit(address(0x1000 + i));
        }
        for (; count > 1; --count) {
            address leaver = members.members()[order % count];
            order /= count;
            vm.prank(leaver);
            members.resign();
            address[] memory list = members.members();
            eq(list.length, count - 1);
            for (uint256 i = 0; i < list.length; ++i) {
                yes(list[i] != leaver && members.isMember(list[i]), "still a member");
                for (uint256 j = 0; j < i; ++j) {
                    yes(list[i] != list[j], "each once");
                }
            }
        }
    }
}
