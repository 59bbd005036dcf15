// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {HospitalRegistry} from "src/HospitalRegistry.sol";
import {RecordAnchor} from "src/RecordAnchor.sol";
import {IHospitalRegistry} from "src/interfaces/IHospitalRegistry.sol";
import {IRecordAnchor} from "src/interfaces/IRecordAnchor.sol";
import {Base} from "./Base.sol";

contract RecordAnchorTest is Base {
    bytes32 private constant ROOT = keccak256("root");
    bytes32 private constant MANIFEST = keccak256("manifest");

    function after_(bytes32 head, bytes32 root, bytes32 manifest, uint8 sizeClass) private pure returns (bytes32) {
        return keccak256(abi.encode(head, root, manifest, sizeClass));
    }

    function test_anchor_head_rolls_and_says_so() public {
        eq(anchors.head(HOSPITAL), bytes32(0));
        vm.expectEmit(true, false, false, true);
        emit IRecordAnchor.Anchored(HOSPITAL, ROOT, MANIFEST, 2, 0);
        vm.prank(HOSPITAL);
        anchors.anchor(0, ROOT, MANIFEST, 2);
        eq(anchors.head(HOSPITAL), after_(0, ROOT, MANIFEST, 2));
    }

    function test_anchor_refuses_the_same_batch_twice() public {
        vm.startPrank(HOSPITAL);
        anchors.anchor(0, ROOT, MANIFEST, 0);
        bytes32 head = anchors.head(HOSPITAL);
        vm.expectRevert(abi.encodeWithSelector(IRecordAnchor.HeadMismatch.selector, bytes32(0), head));
        anchors.anchor(0, ROOT, MANIFEST, 0);
    }

    function test_anchor_refuses_who_acts_for_no_member() public {
        vm.expectRevert(abi.encodeWithSelector(IRecordAnchor.NotMember.selector, STRANGER));
        vm.prank(STRANGER);
        anchors.anchor(0, ROOT, MANIFEST, 0);
    }

    function test_anchor_by_operator_moves_the_members_head_until_it_is_dropped() public {
        vm.prank(HOSPITAL);
        members.addOperator(OTHER);
        vm.prank(OTHER);
        anchors.anchor(0, ROOT, MANIFEST, 0);
        bytes32 head = after_(0, ROOT, MANIFEST, 0);
        eq(anchors.head(HOSPITAL), head);
        eq(anchors.head(OTHER), bytes32(0));
        vm.prank(HOSPITAL);
        members.removeOperator(OTHER);
        vm.expectRevert(abi.encodeWithSelector(IRecordAnchor.NotMember.selector, OTHER));
        vm.prank(OTHER);
        anchors.anchor(head, ROOT, MANIFEST, 0);
    }

    function test_anchor_refuses_an_unknown_size_class() public {
        vm.expectRevert(abi.encodeWithSelector(IRecordAnchor.SizeClassUnknown.selector, uint8(5)));
        vm.prank(HOSPITAL);
        anchors.anchor(0, ROOT, MANIFEST, 5);
    }

    function test_registry_must_be_a_contract() public {
        eq(anchors.registry(), address(members));
        vm.expectRevert(abi.encodeWithSelector(IRecordAnchor.RegistryMissing.selector, STRANGER));
        new RecordAnchor(IHospitalRegistry(STRANGER));
    }

    function test_includes_a_leaf_alone_and_refuses_an_inner_node() public view {
        bytes32 a = keccak256("block");
        bytes32 b = keccak256("content");
        bytes32 leaf = keccak256(abi.encode(keccak256(abi.encode(keccak256("fhir-gateway entry 1"), a, b))));
        bytes32[] memory path = new bytes32[](0);
        yes(anchors.includes(leaf, a, b, path), "a tree of one");
        no(anchors.includes(keccak256(abi.encode(a, b)), a, b, path), "an inner node");
    }

    function testFuzz_anchor_head_is_a_chain_of_all_batches(bytes32[8] memory roots, bytes32 manifest, uint8 class)
        public
    {
        bytes32 head;
        for (uint8 i = 0; i < roots.length; ++i) {
            uint8 size = uint8((uint256(class) + i) % 5);
            vm.prank(HOSPITAL);
            anchors.anchor(head, roots[i], manifest, size);
            head = after_(head, roots[i], manifest, size);
            eq(anchors.head(HOSPITAL), head);
        }
    }

    function testFuzz_anchor_takes_no_other_head(bytes32 expected, bytes32 root, address caller) public {
        vm.assume(expected != 0);
        if (members.isOperator(caller)) {
            vm.expectRevert(abi.encodeWithSelector(IRecordAnchor.HeadMismatch.selector, expected, bytes32(0)));
        } else {
            vm.expectRevert(abi.encodeWithSelector(IRecordAnchor.NotMember.selector, caller));
        }
        vm.prank(caller);
        anchors.anchor(expected, root, MANIFEST, 0);
        vm.expectRevert(abi.encodeWithSelector(IRecordAnchor.HeadMismatch.selector, expected, bytes32(0)));
        vm.prank(HOSPITAL);
        anchors.anchor(expected, root, MANIFEST, 0);
    }

    function testFuzz_includes_every_leaf_of_a_full_tree(bytes32[16] memory blocks, bytes32 content, uint8 pick, bytes32 wrong)
        public
        view
    {
        bytes32[] memory level = new bytes32[](16);
        for (uint256 i = 0; i < 16; ++i) {
            level[i] =
                keccak256(abi.encode(keccak256(abi.encode(keccak256("fhir-gateway entry 1"), blocks[i], content))));
        }
        uint256 place = pick % 16;
        bytes32[] memory path = new bytes32[](4);
        uint256 index = place;
        for (uint256 depth = 0; depth < 4; ++depth) {
            path[depth] = level[index ^ 1];
            for (uint256 i = 0; i < level.length >> (depth + 1); ++i) {
                (bytes32 l, bytes32 r) = (level[2 * i], level[2 * i + 1]);
                level[i] = l < r ? keccak256(abi.encode(l, r)) : keccak256(abi.encode(r, l));
            }
            index >>= 1;
        }
        yes(anchors.includes(level[0], blocks[place], content, path), "a leaf of the tree");
        if (wrong != content) no(anchors.includes(level[0], blocks[place], wrong, path), "another content");
        if (wrong != path[2]) {
            path[2] = wrong;
            no(anchors.includes(level[0], blocks[place], content, path), "another path");
        }
    }

    function testFuzz_registry_is_the_one_given(bytes32 endpoint) public {
        HospitalRegistry another = new HospitalRegistry(endpoint);
        eq(new RecordAnchor(another).registry(), address(another));
    }
}
