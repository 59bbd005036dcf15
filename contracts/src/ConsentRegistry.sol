// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {IERC5267} from "@openzeppelin/contracts/interfaces/IERC5267.sol";
import {IConsentRegistry} from "./interfaces/IConsentRegistry.sol";
import {IHospitalRegistry} from "./interfaces/IHospitalRegistry.sol";
import {ConsentMessage} from "./libraries/ConsentMessage.sol";
import {Passkey} from "./libraries/Passkey.sol";
import {Signer} from "./libraries/Signer.sol";

/// @title ConsentRegistry: see {IConsentRegistry}
contract ConsentRegistry is IConsentRegistry, IERC5267 {
    /// @dev One storage slot: 160 + 32 + 40 + 16 + 4 + 4 bits. `mark` holds the state above the kind.
    struct Slot {
        address patient;
        uint32 validFrom;
        uint40 validUntil;
        uint16 epoch;
        uint8 mark;
    }

    /// @dev One storage slot. `live` counts grants of the present epoch that are not revoked.
    struct Account {
        uint16 epoch;
        uint64 live;
    }

    uint256 private immutable _CHAIN_ID;
    bytes32 private immutable _SEPARATOR;
    IHospitalRegistry private immutable _REGISTRY;

    mapping(bytes32 grantId => Slot) private _slots;
    mapping(address patient => Account) private _accounts;
    mapping(address patient => mapping(uint256 word => uint256)) private _nonces;

    constructor(IHospitalRegistry registry_) {
        if (address(registry_).code.length == 0) revert RegistryMissing(address(registry_));
        _REGISTRY = registry_;
        _CHAIN_ID = block.chainid;
        _SEPARATOR = ConsentMessage.domain(block.chainid, address(this));
    }

    /// @inheritdoc IConsentRegistry
    function grantBySig(GrantRequest calldata request, bytes calldata signature) external returns (bytes32 grantId) {
        return _grantBySig(request, signature, _REGISTRY.memberOf(msg.sender));
    }

    /// @inheritdoc IConsentRegistry
    function grantBatchBySig(GrantRequest[] calldata requests, bytes[] calldata signatures) external {
        if (requests.length != signatures.length) revert LengthMismatch(requests.length, signatures.length);
        address custodian = _REGISTRY.memberOf(msg.sender);
        for (uint256 i = 0; i < requests.length; ++i) {
            _grantBySig(requests[i], signatures[i], custodian);
        }
    }

    /// @inheritdoc IConsentRegistry
    function grant(bytes32 grantee, bytes32 termsHash, uint64 validFrom, uint64 validUntil)
        external
        returns (bytes32 grantId)
    {
        address custodian = _REGISTRY.memberOf(msg.sender);
        return _grant(msg.sender, grantee, termsHash, validFrom, validUntil, SignerKind.Wallet, custodian);
    }

    /// @inheritdoc IConsentRegistry
    function revokeBySig(RevokeRequest calldata request, bytes calldata signature) external {
        _revokeBySig(request, signature);
    }

    /// @inheritdoc IConsentRegistry
    function revokeBatchBySig(RevokeRequest[] calldata requests, bytes[] calldata signatures) external {
        if (requests.length != signatures.length) revert LengthMismatch(requests.length, signatures.length);
        for (uint256 i = 0; i < requests.length; ++i) {
            _revokeBySig(requests[i], signatures[i]);
        }
    }

    /// @inheritdoc IConsentRegistry
    function revoke(bytes32 grantee, bytes32 termsHash) external {
        _revoke(msg.sender, grantee, termsHash);
    }

    /// @inheritdoc IConsentRegistry
    function revokeAllBySig(RevokeAllRequest calldata request, bytes calldata signature) external {
        SignerKind kind = _spend(request.patient, request.nonce, request.deadline);
        _requireEpoch(request.patient, request.epoch);
        _requireSigned(request.patient, kind, ConsentMessage.hashRevokeAll(request), signature);
        _revokeAll(request.patient);
    }

    /// @inheritdoc IConsentRegistry
    function revokeAll() external {
        _revokeAll(msg.sender);
    }

    /// @inheritdoc IConsentRegistry
    function cancelNonces(uint256 word, uint256 mask) external {
        _nonces[msg.sender][word] |= mask;
        emit NoncesCancelled(msg.sender, word, mask);
    }

    /// @inheritdoc IConsentRegistry
    function isGranted(bytes32 grantId) external view returns (bool) {
        return _isGranted(grantId);
    }

    /// @inheritdoc IConsentRegistry
    function isGranted(address patient, bytes32 grantee, bytes32 termsHash) external view returns (bool) {
        return _isGranted(ConsentMessage.grantId(patient, grantee, termsHash));
    }

    /// @inheritdoc IConsentRegistry
    function grantedCount(address patient) external view returns (uint256) {
        return _accounts[patient].live;
    }

    /// @inheritdoc IConsentRegistry
    function grantOf(bytes32 grantId) external view returns (GrantView memory) {
        Slot memory slot = _slots[grantId];
        return GrantView({
            patient: slot.patient,
            state: _stateOf(slot.mark),
            kind: SignerKind(slot.mark & 0x0f),
            validFrom: slot.validFrom,
            validUntil: slot.validUntil,
            epoch: slot.epoch
        });
    }

    /// @inheritdoc IConsentRegistry
    function epochOf(address patient) external view returns (uint64) {
        return _accounts[patient].epoch;
    }

    /// @inheritdoc IConsentRegistry
    function isNonceUsed(address patient, uint256 nonce) external view returns (bool) {
        return _nonces[patient][nonce >> 8] & (1 << (nonce & 0xff)) != 0;
    }

    /// @inheritdoc IConsentRegistry
    function grantIdOf(address patient, bytes32 grantee, bytes32 termsHash) external pure returns (bytes32) {
        return ConsentMessage.grantId(patient, grantee, termsHash);
    }

    /// @inheritdoc IConsentRegistry
    function grantDigest(GrantRequest calldata request) external view returns (bytes32) {
        return ConsentMessage.digest(domainSeparator(), ConsentMessage.hashGrant(request));
    }

    /// @inheritdoc IConsentRegistry
    function revokeDigest(RevokeRequest calldata request) external view returns (bytes32) {
        return ConsentMessage.digest(domainSeparator(), ConsentMessage.hashRevoke(request));
    }

    /// @inheritdoc IConsentRegistry
    function revokeAllDigest(RevokeAllRequest calldata request) external view returns (bytes32) {
        return ConsentMessage.digest(domainSeparator(), ConsentMessage.hashRevokeAll(request));
    }

    /// @inheritdoc IConsentRegistry
    function registry() external view returns (address) {
        return address(_REGISTRY);
    }

    /// @inheritdoc IERC5267
    function eip712Domain()
        external
        view
        returns (
            bytes1 fields,
            string memory name,
            string memory version,
            uint256 chainId,
            address verifyingContract,
            bytes32 salt,
            uint256[] memory extensions
        )
    {
        return (hex"0f", "FHIR Gateway Consent", "1", block.chainid, address(this), bytes32(0), new uint256[](0));
    }

    /// @inheritdoc IConsentRegistry
    function domainSeparator() public view returns (bytes32) {
        // A fork of the chain gets its own domain: what was signed before it does not count on both sides.
        return block.chainid == _CHAIN_ID ? _SEPARATOR : ConsentMessage.domain(block.chainid, address(this));
    }

    function _grantBySig(GrantRequest calldata r, bytes calldata signature, address custodian)
        private
        returns (bytes32)
    {
        SignerKind kind = _spend(r.patient, r.nonce, r.deadline);
        // A key a custodian keeps signs only through a custodian, so that the event names one.
        bool kept = kind == SignerKind.Custodial || kind == SignerKind.Attested;
        if (kept && custodian == address(0)) revert NotMember(msg.sender);
        // What was signed before a revoke-all, and held back, ended with it.
        _requireEpoch(r.patient, r.epoch);
        _requireSigned(r.patient, kind, ConsentMessage.hashGrant(r), signature);
        return _grant(r.patient, r.grantee, r.termsHash, r.validFrom, r.validUntil, kind, custodian);
    }

    function _revokeBySig(RevokeRequest calldata r, bytes calldata signature) private {
        SignerKind kind = _spend(r.patient, r.nonce, r.deadline);
        _requireSigned(r.patient, kind, ConsentMessage.hashRevoke(r), signature);
        _revoke(r.patient, r.grantee, r.termsHash);
    }

    /// @dev Uses up the nonce before any signature is asked about: a contract wallet is called after it.
    function _spend(address patient, uint256 nonce, uint64 deadline) private returns (SignerKind kind) {
        if (block.timestamp > deadline) revert SignatureExpired(deadline, block.timestamp);
        uint8 top = uint8(nonce >> 248);
        if (top > uint8(type(SignerKind).max)) revert SignerKindUnknown(top);
        uint256 bit = 1 << (nonce & 0xff);
        uint256 word = _nonces[patient][nonce >> 8];
        if (word & bit != 0) revert NonceUsed(patient, nonce);
        _nonces[patient][nonce >> 8] = word | bit;
        return SignerKind(top);
    }

    function _requireEpoch(address patient, uint64 expected) private view {
        uint64 epoch = _accounts[patient].epoch;
        if (expected != epoch) revert EpochMismatch(patient, expected, epoch);
    }

    function _requireSigned(address patient, SignerKind kind, bytes32 structHash, bytes calldata signature)
        private
        view
    {
        bytes32 digest = ConsentMessage.digest(domainSeparator(), structHash);
        bool signed;
        if (kind == SignerKind.Passkey) signed = Passkey.signed(patient, digest, signature);
        else if (kind == SignerKind.Wallet) signed = Signer.signed(patient, digest, signature);
        else signed = Signer.signedByKey(patient, digest, signature);
        if (!signed) revert InvalidSignature(patient, uint8(kind), digest);
    }

    function _grant(
        address patient,
        bytes32 grantee,
        bytes32 termsHash,
        uint64 validFrom,
        uint64 validUntil,
        SignerKind kind,
        address custodian
    ) private returns (bytes32 grantId) {
        if (validUntil <= validFrom || validUntil <= block.timestamp || validFrom > type(uint32).max) {
            revert InvalidPeriod(validFrom, validUntil, block.timestamp);
        }
        grantId = ConsentMessage.grantId(patient, grantee, termsHash);
        State state = _stateOf(_slots[grantId].mark);
        if (state != State.None) revert GrantExists(grantId, state);
        Account storage account = _accounts[patient];
        uint16 epoch = account.epoch;
        account.live += 1;
        _slots[grantId] = Slot({
            patient: patient,
            validFrom: uint32(validFrom),
            validUntil: validUntil > type(uint40).max ? type(uint40).max : uint40(validUntil),
            epoch: epoch,
            mark: _mark(State.Granted, kind)
        });
        emit Granted(
            patient, grantId, custodian, grantee, termsHash, validFrom, validUntil, uint8(kind), epoch
        );
    }

    /// @dev The id is made here, over the patient: nobody reaches another's.
    function _revoke(address patient, bytes32 grantee, bytes32 termsHash) private {
        bytes32 grantId = ConsentMessage.grantId(patient, grantee, termsHash);
        Slot storage slot = _slots[grantId];
        uint8 mark = slot.mark;
        State state = _stateOf(mark);
        if (state == State.Revoked) revert AlreadyRevoked(grantId);
        if (state == State.None) {
            slot.patient = patient;
        } else if (slot.epoch == _accounts[patient].epoch) {
            _accounts[patient].live -= 1;
        }
        slot.mark = _mark(State.Revoked, SignerKind(mark & 0x0f));
        emit Revoked(patient, grantId, grantee, termsHash);
    }

    function _revokeAll(address patient) private {
        Account storage account = _accounts[patient];
        uint16 epoch = account.epoch;
        if (epoch == type(uint16).max) revert EpochsExhausted(patient);
        account.epoch = epoch + 1;
        account.live = 0;
        emit RevokedAll(patient, epoch + 1);
    }

    function _isGranted(bytes32 grantId) private view returns (bool) {
        Slot memory slot = _slots[grantId];
        return _stateOf(slot.mark) == State.Granted && slot.validFrom <= block.timestamp
            && (block.timestamp < slot.validUntil || slot.validUntil == type(uint40).max)
            && slot.epoch == _accounts[slot.patient].epoch;
    }

    function _mark(State state, SignerKind kind) private pure returns (uint8) {
        return (uint8(state) << 4) | uint8(kind);
    }

    function _stateOf(uint8 mark) private pure returns (State) {
        return State(mark >> 4);
    }
}
