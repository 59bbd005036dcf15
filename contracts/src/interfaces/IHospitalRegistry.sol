// SPDX-License-Identifier: UNLICENSED
pragma solidity 0.8.37;

/// @title Who takes part
/// @notice The members of the network (hospitals, called custodians elsewhere), the accounts that may act for
///         each, the digest of each one's endpoint document, and the successor of each contract. Members admit,
///         remove and name successors by vote; the account that deploys is the first member.
/// @dev No owner. A vote needs more than half of the members there were when it opened, whoever left since.
interface IHospitalRegistry {
    enum Action {
        Admit,
        Remove,
        NameSuccessor
    }

    enum Outcome {
        Open,
        Passed,
        Refused
    }

    /// @param action what happens when it passes
    /// @param subject the member to admit or remove, or the successor contract
    /// @param value the candidate's endpoint document digest, zero for a removal, or the contract's name
    /// @param openedAt how many admissions there had been: members admitted since have no vote
    /// @param closesAt seconds since 1970; no vote counts from then on
    /// @param electorate members with a vote
    /// @param ayes votes for
    /// @param nays votes against
    struct Proposal {
        Action action;
        Outcome outcome;
        address subject;
        bytes32 value;
        uint64 openedAt;
        uint64 closesAt;
        uint32 electorate;
        uint32 ayes;
        uint32 nays;
    }

    event MemberAdmitted(address indexed member, bytes32 endpointDigest);
    event MemberRemoved(address indexed member);
    event EndpointChanged(address indexed member, bytes32 endpointDigest);
    event OperatorAdded(address indexed member, address indexed operator);
    event OperatorRemoved(address indexed member, address indexed operator);
    event ProposalOpened(
        uint256 indexed id, Action action, address indexed subject, bytes32 value, uint32 electorate, uint64 closesAt
    );
    event Voted(uint256 indexed id, address indexed member, bool approve);
    event ProposalClosed(uint256 indexed id, Outcome outcome);
    event SuccessorNamed(bytes32 indexed name, address indexed successor);

    /// @notice The account is not a member (operators do not vote and do not change the membership).
    error NotMember(address account);
    /// @notice The account is a member already.
    error AlreadyMember(address account);
    /// @notice The zero address cannot be a member, an operator or a successor.
    error AddressMissing();
    /// @notice The operator acts for a member already.
    error OperatorTaken(address operator, address member);
    /// @notice The account is not one of the member's operators.
    error NotOperatorOf(address operator, address member);
    /// @notice A member has as many operators as it may have.
    error TooManyOperators(address member, uint256 limit);
    /// @notice The last member cannot go: nobody could admit another.
    error LastMember(address member);
    /// @notice No proposal has this number.
    error ProposalUnknown(uint256 id);
    /// @notice The proposal is decided, or its time is over.
    error ProposalNotOpen(uint256 id, Outcome outcome, uint64 closesAt);
    /// @notice The member joined after the proposal opened.
    error NotInElectorate(uint256 id, address member);
    /// @notice The member has voted on it.
    error AlreadyVoted(uint256 id, address member);

    /// @notice Open a vote on a new member; the caller's own vote for it is counted at once.
    /// @param candidate the account that will vote and name operators
    /// @param endpointDigest sha-256 of its endpoint document
    /// @return id the proposal's number, from 1
    function proposeAdmission(address candidate, bytes32 endpointDigest) external returns (uint256 id);

    /// @notice Open a vote on removing a member; the caller's own vote for it is counted at once. The member
    ///         concerned votes too.
    /// @return id the proposal's number
    function proposeRemoval(address member) external returns (uint256 id);

    /// @notice Open a vote on the successor of a contract; the caller's own vote for it is counted at once.
    /// @param name the contract's name as bytes32, for example `"RecordAnchor"`
    /// @return id the proposal's number
    function proposeSuccessor(bytes32 name, address successor) external returns (uint256 id);

    /// @notice Vote once on an open proposal, within 14 days; the vote that decides it also carries it out.
    function vote(uint256 id, bool approve) external;

    /// @notice Leave. The last member cannot.
    function resign() external;

    /// @notice Replace the caller's endpoint document digest.
    function setEndpoint(bytes32 endpointDigest) external;

    /// @notice Let an account anchor and relay for the caller, up to 16 of them. A member is one from the start.
    function addOperator(address operator) external;

    /// @notice Take that back.
    function removeOperator(address operator) external;

    /// @notice The member an account acts for, zero if none. A member acts for itself.
    function memberOf(address operator) external view returns (address member);

    /// @notice Whether the account is a member.
    function isMember(address account) external view returns (bool);

    /// @notice Whether the account acts for any member.
    function isOperator(address account) external view returns (bool);

    /// @notice The digest of a member's endpoint document, zero if it is no member.
    function endpointOf(address member) external view returns (bytes32);

    /// @notice Every member, in no particular order.
    function members() external view returns (address[] memory);

    /// @notice A member's operators, without the member itself.
    function operatorsOf(address member) external view returns (address[] memory);

    /// @notice One proposal; reverts when there is none.
    function proposal(uint256 id) external view returns (Proposal memory);

    /// @notice How many proposals there have been.
    function proposalCount() external view returns (uint256);

    /// @notice The contract that replaces the one of this name, zero while it has no successor.
    function successorOf(bytes32 name) external view returns (address);
}
