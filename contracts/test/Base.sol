// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {ConsentRegistry} from "src/ConsentRegistry.sol";
import {HospitalRegistry} from "src/HospitalRegistry.sol";
import {RecordAnchor} from "src/RecordAnchor.sol";
import {IConsentRegistry} from "src/interfaces/IConsentRegistry.sol";

/// @dev The cheatcodes used here: https://getfoundry.sh/reference/cheatcodes
interface Vm {
    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }

    function prank(address sender) external;
    function startPrank(address sender) external;
    function stopPrank() external;
    function warp(uint256 timestamp) external;
    function chainId(uint256 id) external;
    function etch(address target, bytes calldata code) external;
    function addr(uint256 privateKey) external pure returns (address);
    function sign(uint256 privateKey, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function signP256(uint256 privateKey, bytes32 digest) external pure returns (bytes32 r, bytes32 s);
    function publicKeyP256(uint256 privateKey) external view returns (uint256 x, uint256 y);
    function expectRevert(bytes calldata revertData) external;
    function expectRevert() external;
    function expectEmit(bool topic1, bool topic2, bool topic3, bool data) external;
    function assume(bool condition) external pure;
    function readFile(string calldata path) external view returns (string memory);
    function parseJsonBytes32(string calldata json, string calldata key) external pure returns (bytes32);
    function parseJsonBytes32Array(string calldata json, string calldata key) external pure returns (bytes32[] memory);
    function parseJsonBytes(string calldata json, string calldata key) external pure returns (bytes memory);
    function parseJsonString(string calldata json, string calldata key) external pure returns (string memory);
    function parseJsonUint(string calldata json, string calldata key) external pure returns (uint256);
    function parseJsonAddress(string calldata json, string calldata key) external pure returns (address);
    function keyExistsJson(string calldata json, string calldata key) external view returns (bool);
    function toString(uint256 value) external pure returns (string memory);
}

/// @dev Keys to sign with, requests to sign, and assertions that say both values.
abstract contract Kit {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    uint256 internal constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
    uint256 internal constant P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551;
    uint64 internal constant NOW = 1_800_000_000;

    address internal immutable HOSPITAL = address(0xA11CE);
    address internal immutable OTHER = address(0xB0B);
    address internal immutable STRANGER = address(0xDEAD);

    HospitalRegistry internal members;
    RecordAnchor internal anchors;
    ConsentRegistry internal consents;

    error NotEqual(bytes32 left, bytes32 right);
    error NotTrue(string what);

    function eq(bytes32 left, bytes32 right) internal pure {
        if (left != right) revert NotEqual(left, right);
    }

    function eq(uint256 left, uint256 right) internal pure {
        eq(bytes32(left), bytes32(right));
    }

    function eq(address left, address right) internal pure {
        eq(uint160(left), uint160(right));
    }

    function yes(bool condition, string memory what) internal pure {
        if (!condition) revert NotTrue(what);
    }

    function no(bool condition, string memory what) internal pure {
        if (condition) revert NotTrue(what);
    }

    function within(uint256 value, uint256 low, uint256 high) internal pure returns (uint256) {
        return low + value % (high - low + 1);
    }

    function secret(uint256 seed) internal pure returns (uint256) {
        return within(seed, 1, ORDER - 1);
    }

    function ecdsa(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function nonceOf(IConsentRegistry.SignerKind kind, uint256 rest) internal pure returns (uint256) {
        return (uint256(kind) << 248) | (rest & type(uint248).max);
    }

    function request(address patient, uint256 nonce) internal pure returns (IConsentRegistry.GrantRequest memory) {
        return IConsentRegistry.GrantRequest({
            patient: patient,
            grantee: keccak256("grantee"),
            termsHash: keccak256(abi.encode("terms", nonce)),
            validFrom: NOW,
            validUntil: NOW + 365 days,
            epoch: 0,
            nonce: nonce,
            deadline: NOW + 1 hours
        });
    }

    function revocation(IConsentRegistry.GrantRequest memory r, uint256 nonce)
        internal
        pure
        returns (IConsentRegistry.RevokeRequest memory)
    {
        return IConsentRegistry.RevokeRequest({
            patient: r.patient,
            grantee: r.grantee,
            termsHash: r.termsHash,
            nonce: nonce,
            deadline: r.deadline
        });
    }

    function idOf(IConsentRegistry.GrantRequest memory r) internal pure returns (bytes32) {
        return keccak256(abi.encode(r.patient, r.grantee, r.termsHash));
    }
}

/// @dev A test on freshly deployed contracts.
abstract contract Base is Kit {
    function setUp() public virtual {
        vm.warp(NOW);
        vm.startPrank(HOSPITAL);
        members = new HospitalRegistry(keccak256("endpoint of the first"));
        anchors = new RecordAnchor(members);
        consents = new ConsentRegistry(members);
        vm.stopPrank();
    }

    /// @dev A second member, admitted by the first.
    function admit(address member) internal {
        vm.prank(HOSPITAL);
        uint256 id = members.proposeAdmission(member, keccak256(abi.encode("endpoint of", member)));
        if (members.isMember(member)) return;
        address[] memory list = members.members();
        for (uint256 i = 0; i < list.length && !members.isMember(member); ++i) {
            if (list[i] == HOSPITAL) continue;
            vm.prank(list[i]);
            members.vote(id, true);
        }
    }
}
