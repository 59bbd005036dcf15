// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

import {IHospitalRegistry} from "./interfaces/IHospitalRegistry.sol";

/// @title HospitalRegistry: see {IHospitalRegistry}
contract HospitalRegistry is IHospitalRegistry {
    /// @dev `admittedAt` counts admissions, from 1; zero is no member.
    struct Member {
        bytes32 endpointDigest;
        uint64 admittedAt;
        uint64 position;
        address[] operators;
    }

    uint256 private constant MAX_OPERATORS = 16;
    uint64 private constant VOTING_PERIOD_S = 14 days;

    /// @inheritdoc IHospitalRegistry
    mapping(address operator => address member) public memberOf;
    /// @inheritdoc IHospitalRegistry
    mapping(bytes32 name => address) public successorOf;
    /// @inheritdoc IHospitalRegistry
    uint256 public proposalCount;

    uint64 private _admissions;
    address[] private _list;
    mapping(address member => Member) private _members;
    mapping(uint256 id => Proposal) private _proposals;
    mapping(uint256 id => mapping(address member => bool)) private _voted;

    modifier onlyMember() {
        if (!isMember(msg.sender)) revert NotMember(msg.sender);
        _;
    }

    constructor(bytes32 endpointDigest) {
        _admit(msg.sender, endpointDigest);
    }

    /// @inheritdoc IHospitalRegistry
    function proposeAdmission(address candidate, bytes32 endpointDigest) external onlyMember returns (uint256 id) {
        if (candidate == address(0)) revert AddressMissing();
        if (isMember(candidate)) revert AlreadyMember(candidate);
        return _open(Action.Admit, candidate, endpointDigest);
    }

    /// @inheritdoc IHospitalRegistry
    function proposeRemoval(address member) external onlyMember returns (uint256 id) {
        if (!isMember(member)) revert NotMember(member);
        return _open(Action.Remove, member, bytes32(0));
    }

    /// @inheritdoc IHospitalRegistry
    function proposeSuccessor(bytes32 name, address successor) external onlyMember returns (uint256 id) {
        if (successor == address(0)) revert AddressMissing();
        return _open(Action.NameSuccessor, successor, name);
    }

    /// @inheritdoc IHospitalRegistry
    function vote(uint256 id, bool approve) external onlyMember {
        _vote(id, approve);
    }

    /// @inheritdoc IHospitalRegistry
    function resign() external onlyMember {
        _remove(msg.sender);
    }

    /// @inheritdoc IHospitalRegistry
    function setEndpoint(bytes32 endpointDigest) external onlyMember {
        _members[msg.sender].endpointDigest = endpointDigest;
        emit EndpointChanged(msg.sender, endpointDigest);
    }

    /// @inheritdoc IHospitalRegistry
    function addOperator(address operator) external onlyMember {
        if (operator == address(0)) revert AddressMissing();
        address taken = memberOf[operator];
        if (taken != address(0)) revert OperatorTaken(operator, taken);
        address[] storage operators = _members[msg.sender].operators;
        if (operators.length == MAX_OPERATORS) revert TooManyOperators(msg.sender, MAX_OPERATORS);
        operators.push(operator);
        memberOf[operator] = msg.sender;
        emit OperatorAdded(msg.sender, operator);
    }

    /// @inheritdoc IHospitalRegistry
    function removeOperator(address operator) external onlyMember {
        if (operator == msg.sender || memberOf[operator] != msg.sender) revert NotOperatorOf(operator, msg.sender);
        _dropOperator(msg.sender, operator);
    }

    /// @inheritdoc IHospitalRegistry
    function isOperator(address account) external view returns (bool) {
        return memberOf[account] != address(0);
    }

    /// @inheritdoc IHospitalRegistry
    function endpointOf(address member) external view returns (bytes32) {
        return _members[member].endpointDigest;
    }

    /// @inheritdoc IHospitalRegistry
    function members() external view returns (address[] memory) {
        return _list;
    }

    /// @inheritdoc IHospitalRegistry
    function operatorsOf(address member) external view returns (address[] memory) {
        return _members[member].operators;
    }

    /// @inheritdoc IHospitalRegistry
    function proposal(uint256 id) external view returns (Proposal memory) {
        if (id == 0 || id > proposalCount) revert ProposalUnknown(id);
        return _proposals[id];
    }

    /// @inheritdoc IHospitalRegistry
    function isMember(address account) public view returns (bool) {
        return _members[account].admittedAt != 0;
    }

    function _open(Action action, address subject, bytes32 value) private returns (uint256 id) {
        id = ++proposalCount;
        uint32 electorate = uint32(_list.length);
        uint64 closesAt = uint64(block.timestamp) + VOTING_PERIOD_S;
        _proposals[id] = Proposal({
            action: action,
            outcome: Outcome.Open,
            subject: subject,
            value: value,
            openedAt: _admissions,
            closesAt: closesAt,
            electorate: electorate,
            ayes: 0,
            nays: 0
        });
        emit ProposalOpened(id, action, subject, value, electorate, closesAt);
        _vote(id, true);
    }

    function _vote(uint256 id, bool approve) private {
        if (id == 0 || id > proposalCount) revert ProposalUnknown(id);
        Proposal storage p = _proposals[id];
        if (p.outcome != Outcome.Open || block.timestamp >= p.closesAt) {
            revert ProposalNotOpen(id, p.outcome, p.closesAt);
        }
        if (_members[msg.sender].admittedAt > p.openedAt) revert NotInElectorate(id, msg.sender);
        if (_voted[id][msg.sender]) revert AlreadyVoted(id, msg.sender);
        _voted[id][msg.sender] = true;
        if (approve) ++p.ayes;
        else ++p.nays;
        emit Voted(id, msg.sender, approve);
        if (uint256(p.ayes) * 2 > p.electorate) {
            p.outcome = Outcome.Passed;
            emit ProposalClosed(id, Outcome.Passed);
            _carryOut(p);
        } else if (uint256(p.nays) * 2 >= p.electorate) {
            p.outcome = Outcome.Refused;
            emit ProposalClosed(id, Outcome.Refused);
        }
    }

    function _carryOut(Proposal storage p) private {
        if (p.action == Action.Admit) {
            _admit(p.subject, p.value);
        } else if (p.action == Action.Remove) {
            _remove(p.subject);
        } else {
            successorOf[p.value] = p.subject;
            emit SuccessorNamed(p.value, p.subject);
        }
    }

    function _admit(address member, bytes32 endpointDigest) private {
        if (isMember(member)) revert AlreadyMember(member);
        // Naming somebody else's account an operator must not keep its owner out.
        address taken = memberOf[member];
        if (taken != address(0)) _dropOperator(taken, member);
        Member storage m = _members[member];
        m.endpointDigest = endpointDigest;
        m.admittedAt = ++_admissions;
        m.position = uint64(_list.length);
        _list.push(member);
        memberOf[member] = member;
        emit MemberAdmitted(member, endpointDigest);
    }

    function _remove(address member) private {
        if (!isMember(member)) revert NotMember(member);
        if (_list.length == 1) revert LastMember(member);
        Member storage m = _members[member];
        for (uint256 i = 0; i < m.operators.length; ++i) {
            delete memberOf[m.operators[i]];
            emit OperatorRemoved(member, m.operators[i]);
        }
        address last = _list[_list.length - 1];
        _list[m.position] = last;
        _members[last].position = m.position;
        _list.pop();
        delete _members[member];
        delete memberOf[member];
        emit MemberRemoved(member);
    }

    function _dropOperator(address member, address operator) private {
        address[] storage operators = _members[member].operators;
        uint256 i = 0;
        while (operators[i] != operator) ++i;
        operators[i] = operators[operators.length - 1];
        operators.pop();
        delete memberOf[operator];
        emit OperatorRemoved(member, operator);
    }
}
