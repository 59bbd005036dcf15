// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {IHospitalRegistry} from "./interfaces/IHospitalRegistry.sol";
import {IRecordAnchor} from "./interfaces/IRecordAnchor.sol";
import {Entry} from "./libraries/Entry.sol";

/// @title RecordAnchor: see {IRecordAnchor}
contract RecordAnchor is IRecordAnchor {
    uint8 private constant LAST_SIZE_CLASS = 4;

    IHospitalRegistry private immutable _REGISTRY;

    /// @inheritdoc IRecordAnchor
    mapping(address custodian => bytes32) public head;

    constructor(IHospitalRegistry registry_) {
        if (address(registry_).code.length == 0) revert RegistryMissing(address(registry_));
        _REGISTRY = registry_;
    }

    /// @inheritdoc IRecordAnchor
    function anchor(bytes32 expectedHead, bytes32 root, bytes32 manifestDigest, uint8 sizeClass) external {
        if (sizeClass > LAST_SIZE_CLASS) revert SizeClassUnknown(sizeClass);
        address custodian = _REGISTRY.memberOf(msg.sender);
        if (custodian == address(0)) revert NotMember(msg.sender);
        bytes32 actual = head[custodian];
        if (actual != expectedHead) revert HeadMismatch(expectedHead, actual);
        head[custodian] = keccak256(abi.encode(expectedHead, root, manifestDigest, sizeClass));
        emit Anchored(custodian, root, manifestDigest, sizeClass, expectedHead);
    }

    /// @inheritdoc IRecordAnchor
    function includes(bytes32 root, bytes32 blockDigest, bytes32 contentCommitment, bytes32[] calldata path)
        external
        pure
        returns (bool)
    {
        return Entry.isUnder(root, Entry.leaf(blockDigest, contentCommitment), path);
    }

    /// @inheritdoc IRecordAnchor
    function registry() external view returns (address) {
        return address(_REGISTRY);
    }
}
