// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {ConsentRegistry} from "src/ConsentRegistry.sol";
import {IConsentRegistry} from "src/interfaces/IConsentRegistry.sol";
import {Kit} from "../Base.sol";

/// @dev Patients who sign and a relay that sends, in any order; keeps its own books in the plainest way.
contract Relay is Kit {
    struct Book {
        address patient;
        bytes32 grantee;
        bytes32 termsHash;
        uint64 validFrom;
        uint64 validUntil;
        uint64 epoch;
        IConsentRegistry.State state;
    }

    uint256 private constant PATIENTS = 4;
    uint256 private constant TERMS = 6;

    Book[] public books;
    mapping(bytes32 id => uint256 place) private _place;
    mapping(address patient => uint64) public epochs;
    uint256[] public spent;
    uint256 private _nonce;
    IConsentRegistry.GrantRequest private _held;
    bytes private _heldSignature;

    constructor(ConsentRegistry registry) {
        consents = registry;
    }

    function count() external view returns (uint256) {
        return books.length;
    }

    function spentCount() external view returns (uint256) {
        return spent.length;
    }

    function keyOf(uint256 who) public pure returns (uint256) {
        return 0xAA00 + who % PATIENTS;
    }

    function patientOf(uint256 who) public pure returns (address) {
        return vm.addr(keyOf(who));
    }

    function grant(uint8 who, uint8 terms, uint32 delay, uint32 length, bool direct) external {
        Book memory b = Book({
            patient: patientOf(who),
            grantee: keccak256("grantee"),
            termsHash: bytes32(uint256(terms % TERMS)),
            validFrom: uint64(block.timestamp) + delay % 1000,
            validUntil: uint64(block.timestamp) + delay % 1000 + 1 + length % 5000,
            epoch: epochs[patientOf(who)],
            state: IConsentRegistry.State.Granted
        });
        bytes32 id = keccak256(abi.encode(b.patient, b.grantee, b.termsHash));
        bool expected = _place[id] == 0;
        bool done = direct ? _grantDirect(b) : _grantSigned(b, keyOf(who));
        yes(done == expected, "an id is granted once");
        if (!done) return;
        books.push(b);
        _place[id] = books.length;
    }

    function revoke(uint8 who, uint8 terms, bool direct) external {
        address patient = patientOf(who);
        bytes32 grantee = keccak256("grantee");
        bytes32 termsHash = bytes32(uint256(terms % TERMS));
        bytes32 id = keccak256(abi.encode(patient, grantee, termsHash));
        if (_place[id] == 0) {
            books.push(Book(patient, grantee, termsHash, 0, 0, 0, IConsentRegistry.State.None));
            _place[id] = books.length;
        }
        Book storage b = books[_place[id] - 1];
        bool expected = b.state != IConsentRegistry.State.Revoked;
        bool done;
        if (direct) {
            vm.prank(patient);
            try consents.revoke(grantee, termsHash) {
                done = true;
            } catch {}
        } else {
            IConsentRegistry.RevokeRequest memory r =
                IConsentRegistry.RevokeRequest(patient, grantee, termsHash, _next(), type(uint64).max);
            try consents.revokeBySig(r, ecdsa(keyOf(who), consents.revokeDigest(r))) {
                done = true;
                spent.push(r.nonce);
            } catch {}
        }
        yes(done == expected, "an id is revoked once");
        b.state = IConsentRegistry.State.Revoked;
    }

    function revokeAll(uint8 who, uint8 luck, bool direct) external {
        if (luck % 8 != 0) return;
        address patient = patientOf(who);
        if (direct) {
            vm.prank(patient);
            consents.revokeAll();
        } else {
            IConsentRegistry.RevokeAllRequest memory r =
                IConsentRegistry.RevokeAllRequest(patient, epochs[patient], _next(), type(uint64).max);
            consents.revokeAllBySig(r, ecdsa(keyOf(who), consents.revokeAllDigest(r)));
            spent.push(r.nonce);
        }
        ++epochs[patient];
    }

    /// @dev A patient signs, and whoever holds the signature does not send it.
    function hold(uint8 who, uint8 terms) external {
        address patient = patientOf(who);
        _held = IConsentRegistry.GrantRequest({
            patient: patient,
            grantee: keccak256("held"),
            termsHash: bytes32(uint256(terms % TERMS)),
            validFrom: uint64(block.timestamp),
            validUntil: uint64(block.timestamp) + 100_000,
            epoch: epochs[patient],
            nonce: _next(),
            deadline: type(uint64).max
        });
        _heldSignature = ecdsa(keyOf(who), consents.grantDigest(_held));
    }

    /// @dev ... until now: it counts in the epoch it was signed in alone.
    function sendHeld() external {
        IConsentRegistry.GrantRequest memory r = _held;
        if (r.patient == address(0)) return;
        bytes32 id = keccak256(abi.encode(r.patient, r.grantee, r.termsHash));
        bool expected = _place[id] == 0 && r.epoch == epochs[r.patient] && r.validUntil > block.timestamp;
        bool done;
        try consents.grantBySig(r, _heldSignature) {
            done = true;
        } catch {}
        yes(done == expected, "a signature is worth what its epoch is");
        delete _held;
        if (!done) return;
        spent.push(r.nonce);
        books.push(
            Book(
                r.patient, r.grantee, r.termsHash, r.validFrom, r.validUntil, r.epoch, IConsentRegistry.State.Granted
            )
        );
        _place[id] = books.length;
    }

    function wait(uint16 seconds_) external {
        vm.warp(block.timestamp + seconds_ % 2000);
    }

    function _next() private returns (uint256) {
        return ++_nonce;
    }

    function _grantDirect(Book memory b) private returns (bool) {
        vm.prank(b.patient);
        try consents.grant(b.grantee, b.termsHash, b.validFrom, b.validUntil) {
            return true;
        } catch {
            return false;
        }
    }

    function _grantSigned(Book memory b, uint256 key) private returns (bool) {
        IConsentRegistry.GrantRequest memory r = IConsentRegistry.GrantRequest(
            b.patient, b.grantee, b.termsHash, b.validFrom, b.validUntil, b.epoch, _next(), type(uint64).max
        );
        try consents.grantBySig(r, ecdsa(key, consents.grantDigest(r))) {
            spent.push(r.nonce);
            return true;
        } catch {
            return false;
        }
    }
}
