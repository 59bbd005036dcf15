// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {HospitalRegistry} from "src/HospitalRegistry.sol";
import {RecordAnchor} from "src/RecordAnchor.sol";
import {Kit} from "../Base.sol";

/// @dev Hospitals that vote, name operators, come, go and anchor; refusals are part of the play.
contract Consortium is Kit {
    uint160 private constant ACCOUNTS = 8;

    mapping(address custodian => bytes32) public heads;
    mapping(uint256 proposal => uint256) public electorates;

    constructor(HospitalRegistry members_, RecordAnchor anchors_) {
        members = members_;
        anchors = anchors_;
    }

    function account(uint256 who) public view returns (address) {
        uint256 pick = who % ACCOUNTS;
        return pick == 0 ? HOSPITAL : address(uint160(0x1000 + pick));
    }

    function propose(uint8 who, uint8 whom) external {
        vm.startPrank(account(who));
        address subject = account(whom);
        uint256 electorate = members.members().length;
        uint256 before = members.proposalCount();
        if (members.isMember(subject)) try members.proposeRemoval(subject) {} catch {}
        else try members.proposeAdmission(subject, bytes32(uint256(whom))) {} catch {}
        vm.stopPrank();
        if (members.proposalCount() > before) electorates[before + 1] = electorate;
    }

    function vote(uint8 who, uint8 which, bool approve) external {
        uint256 count = members.proposalCount();
        if (count == 0) return;
        vm.prank(account(who));
        try members.vote(1 + which % count, approve) {} catch {}
    }

    function operate(uint8 who, uint8 whom, bool drop) external {
        vm.startPrank(account(who));
        if (drop) try members.removeOperator(account(whom)) {} catch {}
        else try members.addOperator(account(whom)) {} catch {}
        vm.stopPrank();
    }

    function resign(uint8 who, uint8 luck) external {
        if (luck % 16 != 0) return;
        vm.prank(account(who));
        try members.resign() {} catch {}
    }

    function anchor(uint8 who, bytes32 root, uint8 sizeClass, bool stale) external {
        address custodian = members.memberOf(account(who));
        bytes32 head = stale ? keccak256(abi.encode(root)) : heads[custodian];
        vm.prank(account(who));
        try anchors.anchor(head, root, ~root, sizeClass % 6) {
            yes(custodian != address(0) && !stale && sizeClass % 6 < 5, "anchored only in turn, by a member");
            heads[custodian] = keccak256(abi.encode(head, root, ~root, sizeClass % 6));
        } catch {
            yes(custodian == address(0) || stale || sizeClass % 6 == 5, "refused only for a reason");
        }
    }

    function wait(uint24 seconds_) external {
        vm.warp(block.timestamp + seconds_ % 5 days);
    }
}
