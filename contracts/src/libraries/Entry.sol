// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

/// @title What a Merkle leaf commits to
/// @dev Hashed twice, so that no inner node (64 bytes, hashed once) can be passed off as a leaf.
library Entry {
    bytes32 internal constant TAG = keccak256("fhir-gateway entry 1");

    /// @notice keccak256(keccak256(abi.encode(tag, blockDigest, contentCommitment)))
    function leaf(bytes32 blockDigest, bytes32 contentCommitment) internal pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(TAG, blockDigest, contentCommitment))));
    }

    /// @notice Whether a leaf is under a root, by sorted pairs.
    function isUnder(bytes32 root, bytes32 leafHash, bytes32[] calldata path) internal pure returns (bool) {
        return MerkleProof.verifyCalldata(path, root, leafHash);
    }
}
