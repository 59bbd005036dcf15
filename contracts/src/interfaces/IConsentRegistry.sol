// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// @title What patients permit
/// @notice A grant is one thing a patient lets one grantee do. Patients sign EIP-712 messages and anyone may relay
///         them; a patient with an own account may also call directly. The chain sees addresses, salted hashes and
///         times: neither grantee nor terms can be read from it.
///
///         The signed types, in the domain ("FHIR Gateway Consent", "1", chain id, this contract):
///         - `Grant(address patient,bytes32 grantee,Terms terms,uint64 validFrom,uint64 validUntil,uint64 epoch,uint256 nonce,uint64 deadline)`
///           with `Terms(string statement,string hospital,string grantee,string purposes,string records,string period,bytes32 salt)`
///         - `Revoke(address patient,bytes32 grantId,uint256 nonce,uint64 deadline)`
///         - `RevokeAll(address patient,uint64 epoch,uint256 nonce,uint64 deadline)`
///
///         The top byte of a nonce is the signer kind, so what is signed says how it was signed and a relay cannot
///         pass a custodial signature off as a wallet's. The other 248 bits are free, used once, in any order.
///
///         A grant id lives once: none, granted, then revoked or ended with its epoch, never back. The same terms
///         again need a new salt. A revocation of an id not yet granted holds too: that grant can no longer land.
/// @dev No owner, no pause, no proxy. Nobody but the patient's key changes a patient's grants.
interface IConsentRegistry {
    /// @dev Wallet: ECDSA, or ERC-1271 where the patient's address has code, or either where that code is an
    ///      EIP-7702 delegation. Custodial: ECDSA by a key a custodian keeps for the patient. Passkey: WebAuthn
    ///      over P-256, the address being that of the key. Attested: as Custodial, for a consent given on paper.
    enum SignerKind {
        Wallet,
        Custodial,
        Passkey,
        Attested
    }

    enum State {
        None,
        Granted,
        Revoked
    }

    /// @param patient the account that grants
    /// @param grantee salted hash of who is granted
    /// @param termsHash EIP-712 hashStruct of the Terms
    /// @param validFrom seconds since 1970, first second in force
    /// @param validUntil seconds since 1970, first second no longer in force; 2^40 - 1 or more is without end
    /// @param epoch the patient's epoch it was signed in: a revoke-all ends it, relayed or not
    /// @param nonce signer kind in the top byte, anything unused below
    /// @param deadline seconds since 1970, last second at which the signature may be relayed
    struct GrantRequest {
        address patient;
        bytes32 grantee;
        bytes32 termsHash;
        uint64 validFrom;
        uint64 validUntil;
        uint64 epoch;
        uint256 nonce;
        uint64 deadline;
    }

    /// @notice The signed message holds the grant id; grantee and terms hash are given so that an id can only ever
    ///         be touched by its own patient.
    struct RevokeRequest {
        address patient;
        bytes32 grantee;
        bytes32 termsHash;
        uint256 nonce;
        uint64 deadline;
    }

    /// @param epoch the epoch that ends: the patient's present one
    struct RevokeAllRequest {
        address patient;
        uint64 epoch;
        uint256 nonce;
        uint64 deadline;
    }

    /// @param epoch the patient's epoch it was granted in; it counts while that is still the present one
    struct GrantView {
        address patient;
        State state;
        SignerKind kind;
        uint64 validFrom;
        uint64 validUntil;
        uint64 epoch;
    }

    /// @param custodian the member the relaying account acts for, zero where it acts for none
    event Granted(
        address indexed patient,
        bytes32 indexed grantId,
        address indexed custodian,
        bytes32 grantee,
        bytes32 termsHash,
        uint64 validFrom,
        uint64 validUntil,
        uint8 kind,
        uint64 epoch
    );
    /// @notice Also of an id never granted: that grant can no longer land.
    event Revoked(address indexed patient, bytes32 indexed grantId, bytes32 grantee, bytes32 termsHash);
    /// @param epoch the patient's epoch from here on: every grant of an earlier one is over
    event RevokedAll(address indexed patient, uint64 epoch);
    event NoncesCancelled(address indexed patient, uint256 indexed word, uint256 mask);

    /// @notice The signature is not the patient's over exactly this message.
    error InvalidSignature(address patient, uint8 kind, bytes32 digest);
    /// @notice The nonce's top byte names no signer kind.
    error SignerKindUnknown(uint8 kind);
    /// @notice A custodial or attested grant is relayed only by an account that acts for a member.
    error NotMember(address caller);
    /// @notice The nonce was used or cancelled.
    error NonceUsed(address patient, uint256 nonce);
    /// @notice The signature came too late.
    error SignatureExpired(uint64 deadline, uint256 blockTime);
    /// @notice The grant would never be in force, or begins after 2^32 - 1.
    error InvalidPeriod(uint64 validFrom, uint64 validUntil, uint256 blockTime);
    /// @notice This id was granted or revoked before.
    error GrantExists(bytes32 grantId, State state);
    /// @notice This id is revoked.
    error AlreadyRevoked(bytes32 grantId);
    /// @notice The message is of another epoch than the patient's present one.
    error EpochMismatch(address patient, uint64 expected, uint64 actual);
    /// @notice The patient has revoked everything 65,535 times; grants can still be revoked one by one.
    error EpochsExhausted(address patient);
    /// @notice A batch has not one signature for each request.
    error LengthMismatch(uint256 requests, uint256 signatures);
    /// @notice The address given as the registry has no code.
    error RegistryMissing(address registry);

    /// @notice Grant by the patient's signature.
    /// @param signature 65 bytes r, s, v; or what the patient's ERC-1271 contract wants; or for a passkey
    ///        `abi.encode(bytes32 x, bytes32 y, bytes32 r, bytes32 s, bytes authenticatorData, string clientDataTail)`,
    ///        s in the lower half, the tail being all of clientDataJSON after the challenge's closing quote
    /// @return grantId keccak256(abi.encode(patient, grantee, termsHash))
    function grantBySig(GrantRequest calldata request, bytes calldata signature) external returns (bytes32 grantId);

    /// @notice Several grants, of any patients; all or none.
    function grantBatchBySig(GrantRequest[] calldata requests, bytes[] calldata signatures) external;

    /// @notice Grant as the calling patient.
    function grant(bytes32 grantee, bytes32 termsHash, uint64 validFrom, uint64 validUntil)
        external
        returns (bytes32 grantId);

    /// @notice Revoke by the patient's signature, also what is not granted yet.
    function revokeBySig(RevokeRequest calldata request, bytes calldata signature) external;

    /// @notice Several revocations, of any patients; all or none.
    function revokeBatchBySig(RevokeRequest[] calldata requests, bytes[] calldata signatures) external;

    /// @notice Revoke as the calling patient.
    function revoke(bytes32 grantee, bytes32 termsHash) external;

    /// @notice End every grant of the patient at once, by signature, and every signature for one that was not used.
    function revokeAllBySig(RevokeAllRequest calldata request, bytes calldata signature) external;

    /// @notice End every grant of the calling patient at once, and every signature for one that was not used.
    function revokeAll() external;

    /// @notice Make signatures the calling patient gave away worthless.
    /// @param word nonce >> 8
    /// @param mask bit (nonce & 0xff) of every nonce to cancel
    function cancelNonces(uint256 word, uint256 mask) external;

    /// @notice Whether a grant is in force now.
    function isGranted(bytes32 grantId) external view returns (bool);

    /// @notice Whether this patient's grant to this grantee on these terms is in force now.
    function isGranted(address patient, bytes32 grantee, bytes32 termsHash) external view returns (bool);

    /// @notice How many of the patient's grants are neither revoked nor ended with their epoch. Grants whose
    ///         validity has run out, or has not begun, are counted: no transaction marks that moment.
    function grantedCount(address patient) external view returns (uint256);

    /// @notice What is stored about a grant.
    function grantOf(bytes32 grantId) external view returns (GrantView memory);

    /// @notice The patient's present epoch.
    function epochOf(address patient) external view returns (uint64);

    /// @notice Whether a nonce was used or cancelled.
    function isNonceUsed(address patient, uint256 nonce) external view returns (bool);

    /// @notice keccak256(abi.encode(patient, grantee, termsHash)).
    function grantIdOf(address patient, bytes32 grantee, bytes32 termsHash) external pure returns (bytes32);

    /// @notice What the patient signs for a grant.
    function grantDigest(GrantRequest calldata request) external view returns (bytes32);

    /// @notice What the patient signs for a revocation.
    function revokeDigest(RevokeRequest calldata request) external view returns (bytes32);

    /// @notice What the patient signs to revoke everything.
    function revokeAllDigest(RevokeAllRequest calldata request) external view returns (bytes32);

    /// @notice The EIP-712 domain separator, of the chain the contract finds itself on.
    function domainSeparator() external view returns (bytes32);

    /// @notice The registry that says which member a relaying account acts for.
    function registry() external view returns (address);
}
