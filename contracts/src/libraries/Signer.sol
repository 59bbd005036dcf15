// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @title Whether an account signed a digest
/// @dev OpenZeppelin's SignatureChecker needs a Cancun EVM, and asks only ERC-1271 of an account that has code:
///      an account delegated by EIP-7702 to code without ERC-1271 would lose its own key's signatures.
library Signer {
    /// @notice By the account's own key.
    function signedByKey(address account, bytes32 digest, bytes calldata signature) internal pure returns (bool) {
        (address recovered, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        return failure == ECDSA.RecoverError.NoError && recovered == account;
    }

    /// @notice By the account's own key where it has one, by its contract's word where it has code.
    function signed(address account, bytes32 digest, bytes calldata signature) internal view returns (bool) {
        if (account.code.length == 0) return signedByKey(account, digest, signature);
        if (isDelegated(account) && signedByKey(account, digest, signature)) return true;
        (bool answered, bytes memory answer) =
            account.staticcall(abi.encodeCall(IERC1271.isValidSignature, (digest, signature)));
        return answered && answer.length >= 32
            && abi.decode(answer, (bytes32)) == bytes32(IERC1271.isValidSignature.selector);
    }

    /// @notice Whether the account's code is an EIP-7702 delegation: 0xef0100 and an address. No contract's code
    ///         can begin so (EIP-3541), so such an account has a key.
    function isDelegated(address account) internal view returns (bool) {
        return account.code.length == 23 && bytes3(account.code) == 0xef0100;
    }
}
