// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// @title That a batch of record versions existed, and that none is missing
/// @notice Each custodian has one rolling head over all its batches:
///         `head = keccak256(abi.encode(head, root, manifestDigest, sizeClass))`, from zero. An anchor names the
///         head it follows, so the same batch cannot be anchored twice and a missing event is provable.
/// @dev Only digests go in. Nothing is ever deleted or overwritten but the head.
interface IRecordAnchor {
    /// @param custodian the member whose batch it is
    /// @param root the Merkle root over the batch's leaves
    /// @param manifestDigest sha-256 of the batch's manifest block
    /// @param sizeClass 0: up to 16 entries, 1: 64, 2: 256, 3: 1,024, 4: 4,096
    /// @param previousHead the custodian's rolling head before; the one after follows from these four values, so a
    ///        lone event proves its place
    event Anchored(
        address indexed custodian, bytes32 root, bytes32 manifestDigest, uint8 sizeClass, bytes32 previousHead
    );

    /// @notice The caller acts for no member of the registry.
    error NotMember(address caller);
    /// @notice The custodian's head is another: this batch is anchored already, or one before it is missing.
    error HeadMismatch(bytes32 expected, bytes32 actual);
    /// @notice There is no such size class.
    error SizeClassUnknown(uint8 sizeClass);
    /// @notice The address given as the registry has no code.
    error RegistryMissing(address registry);

    /// @notice Anchor one batch for the member the caller acts for.
    /// @param expectedHead the custodian's head as the caller knows it
    function anchor(bytes32 expectedHead, bytes32 root, bytes32 manifestDigest, uint8 sizeClass) external;

    /// @notice A custodian's rolling head, zero before its first batch.
    function head(address custodian) external view returns (bytes32);

    /// @notice Whether an entry is under a root. Says nothing about whether the root was anchored: the events do.
    /// @param path sibling hashes from the leaf up; a node is the keccak256 of its two children, smaller first
    function includes(bytes32 root, bytes32 blockDigest, bytes32 contentCommitment, bytes32[] calldata path)
        external
        pure
        returns (bool);

    /// @notice The registry that says who may anchor.
    function registry() external view returns (address);
}
