// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {ConsentRegistry} from "src/ConsentRegistry.sol";
import {HospitalRegistry} from "src/HospitalRegistry.sol";
import {IConsentRegistry} from "src/interfaces/IConsentRegistry.sol";
import {ConsentMessage} from "src/libraries/ConsentMessage.sol";
import {Entry} from "src/libraries/Entry.sol";
import {Base} from "./Base.sol";

/// @dev The messages as any domain would have them.
contract Messages {
    function digest(bytes32 domain, IConsentRegistry.GrantRequest calldata r) external pure returns (bytes32) {
        return ConsentMessage.digest(domain, ConsentMessage.hashGrant(r));
    }

    function digest(bytes32 domain, IConsentRegistry.RevokeAllRequest calldata r) external pure returns (bytes32) {
        return ConsentMessage.digest(domain, ConsentMessage.hashRevokeAll(r));
    }

    function digestRevoke(bytes32 domain, address patient, bytes32 id, uint256 nonce, uint64 deadline)
        external
        pure
        returns (bytes32)
    {
        return ConsentMessage.digest(domain, keccak256(abi.encode(ConsentMessage.REVOKE, patient, id, nonce, deadline)));
    }
}

/// @dev What the gateway's tests read too: tests/vectors, made without either side.
contract VectorsTest is Base {
    string private constant FOLDER = "../tests/vectors/";
    bytes32 private constant TERMS = keccak256(
        "Terms(string statement,string hospital,string grantee,string purposes,string records,string period,bytes32 salt)"
    );

    function read(string memory name) private view returns (string memory) {
        return vm.readFile(string.concat(FOLDER, name));
    }

    function at(string memory list, uint256 index, string memory field) private pure returns (string memory) {
        return string.concat(".", list, "[", vm.toString(index), "].", field);
    }

    function test_leaf_vectors() public view {
        string memory json = read("leaf.json");
        eq(vm.parseJsonBytes32(json, ".tag"), Entry.TAG);
        uint256 i = 0;
        for (; vm.keyExistsJson(json, at("cases", i, "leaf")); ++i) {
            eq(
                Entry.leaf(
                    vm.parseJsonBytes32(json, at("cases", i, "blockDigest")),
                    vm.parseJsonBytes32(json, at("cases", i, "contentCommitment"))
                ),
                vm.parseJsonBytes32(json, at("cases", i, "leaf"))
            );
        }
        yes(i >= 7, "vectors read");
    }

    function test_proof_vectors() public view {
        string memory json = read("proof.json");
        uint256 read_;
        for (uint256 t = 0; vm.keyExistsJson(json, at("trees", t, "root")); ++t) {
            bytes32 root = vm.parseJsonBytes32(json, at("trees", t, "root"));
            string memory tree = string.concat("trees[", vm.toString(t), "].proofs");
            for (uint256 i = 0; vm.keyExistsJson(json, at(tree, i, "leaf")); ++i) {
                bytes32 digest = vm.parseJsonBytes32(json, at(tree, i, "blockDigest"));
                bytes32 commitment = vm.parseJsonBytes32(json, at(tree, i, "contentCommitment"));
                bytes32[] memory path = vm.parseJsonBytes32Array(json, at(tree, i, "path"));
                yes(anchors.includes(root, digest, commitment, path), "included");
                no(anchors.includes(root, commitment, digest, path), "not the other way round");
                ++read_;
            }
        }
        yes(read_ == 9, "vectors read");
    }

    function deployed(string memory json) private returns (ConsentRegistry registry) {
        address deployer = vm.parseJsonAddress(json, ".deployer");
        vm.chainId(vm.parseJsonUint(json, ".chainId"));
        vm.startPrank(deployer);
        registry = new ConsentRegistry(new HospitalRegistry(0));
        vm.stopPrank();
        eq(registry.domainSeparator(), vm.parseJsonBytes32(json, ".domainSeparator"));
    }

    function text(string memory json, string memory where, string memory field) private pure returns (bytes32) {
        return keccak256(bytes(vm.parseJsonString(json, string.concat(where, field))));
    }

    function termsHash(string memory json, string memory where) private pure returns (bytes32) {
        return keccak256(
            abi.encode(
                TERMS,
                text(json, where, "statement"),
                text(json, where, "hospital"),
                text(json, where, "grantee"),
                text(json, where, "purposes"),
                text(json, where, "records"),
                text(json, where, "period"),
                vm.parseJsonBytes32(json, string.concat(where, "salt"))
            )
        );
    }

    function grantAt(string memory json, string memory where)
        private
        pure
        returns (IConsentRegistry.GrantRequest memory r)
    {
        string memory message = string.concat(where, ".message.");
        r.patient = vm.parseJsonAddress(json, string.concat(message, "patient"));
        r.grantee = vm.parseJsonBytes32(json, string.concat(message, "grantee"));
        r.termsHash = termsHash(json, string.concat(message, "terms."));
        r.validFrom = uint64(vm.parseJsonUint(json, string.concat(message, "validFrom")));
        r.validUntil = uint64(vm.parseJsonUint(json, string.concat(message, "validUntil")));
        r.epoch = uint64(vm.parseJsonUint(json, string.concat(message, "epoch")));
        r.nonce = vm.parseJsonUint(json, string.concat(message, "nonce"));
        r.deadline = uint64(vm.parseJsonUint(json, string.concat(message, "deadline")));
    }

    function grantFrom(ConsentRegistry registry, string memory json, string memory where)
        private
        returns (IConsentRegistry.GrantRequest memory r)
    {
        r = grantAt(json, string.concat(where, ".typedData"));
        eq(r.termsHash, vm.parseJsonBytes32(json, string.concat(where, ".termsHash")));
        eq(idOf(r), vm.parseJsonBytes32(json, string.concat(where, ".grantId")));
        eq(registry.grantDigest(r), vm.parseJsonBytes32(json, string.concat(where, ".digest")));
        vm.prank(vm.parseJsonAddress(json, ".deployer"));
        registry.grantBySig(r, vm.parseJsonBytes(json, string.concat(where, ".signature")));
        yes(registry.isGranted(idOf(r)), "granted");
    }

    function test_grant_vectors_by_wallet_custodial_and_attested() public {
        string memory json = read("consent_messages.json");
        ConsentRegistry registry = deployed(json);
        for (uint256 i = 0; i < 3; ++i) {
            grantFrom(registry, json, string.concat(".cases[", vm.toString(i), "]"));
        }
    }

    function test_grant_vector_by_passkey() public {
        string memory json = read("consent_messages.json");
        ConsentRegistry registry = deployed(json);
        IConsentRegistry.GrantRequest memory r = grantFrom(registry, json, ".passkey");
        yes(registry.grantOf(idOf(r)).kind == IConsentRegistry.SignerKind.Passkey, "by passkey");
    }

    function test_revoke_and_revoke_all_vectors() public {
        string memory json = read("consent_messages.json");
        ConsentRegistry registry = deployed(json);
        IConsentRegistry.GrantRequest memory r = grantFrom(registry, json, ".cases[0]");
        IConsentRegistry.RevokeRequest memory end = revocation(r, 8);
        end.deadline = 4_000_000_000;
        eq(registry.revokeDigest(end), vm.parseJsonBytes32(json, ".cases[3].digest"));
        registry.revokeBySig(end, vm.parseJsonBytes(json, ".cases[3].signature"));
        IConsentRegistry.RevokeAllRequest memory all =
            IConsentRegistry.RevokeAllRequest(r.patient, 0, 9, 4_000_000_000);
        eq(registry.revokeAllDigest(all), vm.parseJsonBytes32(json, ".cases[4].digest"));
        registry.revokeAllBySig(all, vm.parseJsonBytes(json, ".cases[4].signature"));
        eq(registry.epochOf(r.patient), 1);
    }

    /// @dev The gateway's own vectors: what its code shows a wallet is what the contract hashes.
    function test_gateway_message_vectors() public {
        Messages messages = new Messages();
        string memory json = read("typed_data.json");
        uint256 i = 0;
        for (; vm.keyExistsJson(json, at("cases", i, "digest")); ++i) {
            string memory where = string.concat(".cases[", vm.toString(i), "].typed_data");
            bytes32 domain = ConsentMessage.domain(
                vm.parseJsonUint(json, string.concat(where, ".domain.chainId")),
                vm.parseJsonAddress(json, string.concat(where, ".domain.verifyingContract"))
            );
            eq(domain, vm.parseJsonBytes32(json, at("cases", i, "domain_separator")));
            eq(digestAt(messages, json, where, domain), vm.parseJsonBytes32(json, at("cases", i, "digest")));
        }
        yes(i >= 6, "vectors read");
    }

    function digestAt(Messages messages, string memory json, string memory where, bytes32 domain)
        private
        pure
        returns (bytes32)
    {
        bytes32 primary = text(json, where, ".primaryType");
        string memory message = string.concat(where, ".message.");
        if (primary == keccak256("Grant")) return messages.digest(domain, grantAt(json, where));
        address patient = vm.parseJsonAddress(json, string.concat(message, "patient"));
        uint256 nonce = vm.parseJsonUint(json, string.concat(message, "nonce"));
        uint64 deadline = uint64(vm.parseJsonUint(json, string.concat(message, "deadline")));
        if (primary == keccak256("Revoke")) {
            bytes32 id = vm.parseJsonBytes32(json, string.concat(message, "grantId"));
            return messages.digestRevoke(domain, patient, id, nonce, deadline);
        }
        uint64 epoch = uint64(vm.parseJsonUint(json, string.concat(message, "epoch")));
        return messages.digest(domain, IConsentRegistry.RevokeAllRequest(patient, epoch, nonce, deadline));
    }

    /// @dev The gateway's own trees and rolling heads.
    function test_gateway_batch_vectors() public {
        string memory json = read("merkle.json");
        uint256 b = 0;
        for (; vm.keyExistsJson(json, at("batches", b, "root")); ++b) {
            bytes32 root = vm.parseJsonBytes32(json, at("batches", b, "root"));
            string memory entries = string.concat("batches[", vm.toString(b), "].entries");
            for (uint256 i = 0; vm.keyExistsJson(json, at(entries, i, "leaf")); ++i) {
                bytes32 digest = vm.parseJsonBytes32(json, at(entries, i, "blockDigest"));
                bytes32 commitment = vm.parseJsonBytes32(json, at(entries, i, "contentCommitment"));
                eq(Entry.leaf(digest, commitment), vm.parseJsonBytes32(json, at(entries, i, "leaf")));
                bytes32[] memory path = vm.parseJsonBytes32Array(json, at(entries, i, "path"));
                yes(anchors.includes(root, digest, commitment, path), "included");
            }
            bytes32 prior = vm.parseJsonBytes32(json, at("batches", b, "priorHead"));
            uint8 sizeClass = uint8(vm.parseJsonUint(json, at("batches", b, "sizeClass")));
            eq(anchors.head(HOSPITAL), prior);
            vm.prank(HOSPITAL);
            anchors.anchor(prior, root, vm.parseJsonBytes32(json, at("batches", b, "manifestDigest")), sizeClass);
            eq(anchors.head(HOSPITAL), vm.parseJsonBytes32(json, at("batches", b, "head")));
        }
        yes(b >= 4, "vectors read");
    }
}
