// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IConsentRegistry} from "src/interfaces/IConsentRegistry.sol";

/// @dev A contract wallet of one owner, who may be changed.
contract OwnedWallet is IERC1271 {
    address public owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function pass(address owner_) external {
        owner = owner_;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        (address recovered,,) = ECDSA.tryRecoverCalldata(hash, signature);
        return recovered == owner ? IERC1271.isValidSignature.selector : bytes4(0xffffffff);
    }

    function revokeAll(IConsentRegistry registry) external {
        registry.revokeAll();
    }
}

/// @dev Tries to come back into the registry while it is asked.
contract ReentrantWallet {
    IConsentRegistry private immutable _REGISTRY;

    constructor(IConsentRegistry registry) {
        _REGISTRY = registry;
    }

    function isValidSignature(bytes32, bytes calldata) external returns (bytes4) {
        _REGISTRY.revokeAll();
        return IERC1271.isValidSignature.selector;
    }
}

/// @dev Says yes with four bytes instead of a word.
contract ShortWallet {
    fallback(bytes calldata) external returns (bytes memory) {
        return abi.encodePacked(IERC1271.isValidSignature.selector);
    }
}

/// @dev Code without ERC-1271, as an account may have delegated to.
contract Plain {}
