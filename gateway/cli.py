"""The ``gateway`` command.

Owns arguments, exit codes and what is printed; refuses nothing the rooms accept. Each command imports only what it
needs, so that ``status`` and ``verify`` answer at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gateway import clients_command, people_command
from gateway.config import load_settings
from gateway.errors import GatewayError, InputRefused, Misconfigured


class _Parser(argparse.ArgumentParser):
    """Wrong usage exits with 64, sysexits' EX_USAGE: 2 means something to who runs ``verify``."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. An error of ours is one line on stderr and exit 2, wrong usage is 64."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except InputRefused as error:
        for issue in error.issues:
            print(f"gateway: {issue.diagnostics}" + (f" ({issue.expression})" if issue.expression else ""),
                  file=sys.stderr)
    except GatewayError as error:
        print(f"gateway: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gateway", description="A FHIR R4 gateway; settings are GATEWAY_* variables.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="start everything and keep it running")
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="say what is wrong before a start, and how to mend it")
    check.set_defaults(run=_check)

    status = commands.add_parser("status", help="where it is and how far anchoring has come")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)

    token = commands.add_parser("token", help="print a bearer token (audited)")
    token.add_argument("--scope")
    token.add_argument("--client", help="client id; this hospital's own feed when neither it nor --user is given")
    token.add_argument("--user", help="Practitioner/ID or Patient/ID")
    token.add_argument("--patient", help="launch context: the patient's ID")
    token.add_argument("--purpose", help="v3-ActReason code, TREAT for clinicians")
    token.add_argument("--reason", help="why the glass is broken (purpose BTG or ETREAT)")
    token.add_argument("--ttl", type=int, metavar="SECONDS")
    token.set_defaults(run=_token)

    clients_command.parsers(commands)
    people_command.parsers(commands)

    imported = commands.add_parser("import", help="FHIR JSON, NDJSON and bundles, plain or gz")
    imported.add_argument("paths", nargs="+", type=Path)
    imported.add_argument("--report", type=Path, help="write what was done, refused and why, as JSON lines")
    imported.add_argument("--again", action="store_true", help="also what an earlier import has brought in")
    imported.set_defaults(run=_import)

    verify = commands.add_parser("verify", help="check a receipt: 0 verified, 1 false, 2 block not trusted yet")
    verify.add_argument("receipt", type=Path)
    verify.add_argument("--resource", type=Path,
                        help="the exact bytes of the version (vread); the receipt of an AuditEvent log-N takes none")
    verify.add_argument("--rpc", help="JSON-RPC URL of a chain node you trust")
    verify.add_argument("--confirmations", type=int, default=1, metavar="N",
                        help="blocks that make it final, its own counted (default 1)")
    verify.add_argument("--contract", metavar="0x…", help="the RecordAnchor you trust")
    verify.add_argument("--custodian", metavar="0x…", help="the hospital's address you trust")
    verify.set_defaults(run=_verify)

    audited = commands.add_parser("verify-audit", help="hold the audit against what the chain anchored of it: 0 sound, "
                                                       "1 altered, 2 not decidable")
    audited.add_argument("--json", action="store_true")
    audited.add_argument("--rpc", help="JSON-RPC URL of a chain node you trust")
    audited.add_argument("--contract", metavar="0x…", help="the RecordAnchor you trust")
    audited.add_argument("--custodian", metavar="0x…", help="the hospital's address you trust")
    audited.set_defaults(run=_verify_audit)

    rebuild = commands.add_parser("rebuild", help="make the search index anew from the blocks (stop the gateway "
                                                  "first); cut short, it goes on when run again")
    rebuild.set_defaults(run=_rebuild)

    fsck = commands.add_parser("fsck", help="hold journal, blocks, index, audit and batches against each other; "
                                            "1: something is wrong, and which")
    fsck.set_defaults(run=_fsck)

    keys = commands.add_parser("keys", help="the key store").add_subparsers(required=True, metavar="ACTION")
    backup = keys.add_parser("backup", help="write an encrypted copy")
    backup.add_argument("file", type=Path)
    backup.add_argument("--passphrase-file", type=Path, required=True)
    backup.set_defaults(run=_keys_backup)
    restore = keys.add_parser("restore", help="bring a copy back (stop the gateway first)")
    restore.add_argument("file", type=Path)
    restore.add_argument("--passphrase-file", type=Path, required=True)
    restore.add_argument("--root", type=Path, metavar="FILE", help="a copy of the root key the backup was made under")
    restore.set_defaults(run=_keys_restore)
    rotate = keys.add_parser("rotate", help="new keys of one level, online")
    rotate.add_argument("level", choices=("root", "patient", "category", "secret"))
    rotate.add_argument("--patient", help="one patient's id instead of all")
    rotate.add_argument("--label", help="which secret: token-hash, page-link, manifest")
    rotate.set_defaults(run=_keys_rotate)
    root = keys.add_parser("root", help="which root key this is (its fingerprint, never the key)")
    root.set_defaults(run=_keys_root)
    return parser


def _serve(_: argparse.Namespace) -> int:
    from gateway.supervisor import Supervisor

    return Supervisor(load_settings()).run()


def _check(_: argparse.Namespace) -> int:
    from gateway.preflight import problems

    found = problems(load_settings())
    for problem in found:
        print(f"{'WARNING' if problem.warning else 'WRONG'}  {problem.what}\n       mend: {problem.mend}")
    if not found:
        print("ready to start: nothing is wrong")
    return int(any(not problem.warning for problem in found))


def _status(given: argparse.Namespace) -> int:
    from gateway.status import status

    found = status(load_settings())
    if given.json:
        print(json.dumps(found, indent=2))
        return 0
    chain, acts = found["chain"], found["acts"]
    refused = "".join(f"; refused: {count} {what}" for what, count in acts["refused"].items())
    print(f"FHIR base       {found['fhir_base']}\ndata directory  {found['data_dir']}\n"
          f"running         {'yes' if found['running'] else 'no'}\n"
          f"entries         {found['entries']['pending']} pending, {found['entries']['anchored']} anchored\n"
          f"audit           {found['audit']['rows']} rows, {found['audit']['waiting']} waiting for a run\n"
          f"signed acts     {acts['waiting']} waiting for the chain{refused}\n"
          f"chain           {chain['rpc']} id {chain['chain_id']} "
          f"{'does not answer' if chain['head'] is None else 'head ' + str(chain['head'])}")
    for name, address in (chain["contracts"] or {}).items():
        print(f"  {name:<17} {address}")
    return 0


def _token(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.minting import mint_token

    settings = load_settings()
    if not settings.operator_tokens:
        raise Misconfigured("GATEWAY_OPERATOR_TOKENS is false: tokens come from the authorization server alone")
    secret, _ = mint_token(opened_smart(settings), scope=given.scope, client=given.client, user=given.user,
                           patient=given.patient, purpose=given.purpose, ttl_s=given.ttl, reason=given.reason)
    print(str(secret))
    return 0


def _import(given: argparse.Namespace) -> int:
    from gateway.import_command import import_paths
    from gateway.logs import set_up_logging

    settings = load_settings()
    set_up_logging(settings)
    return import_paths(settings, given.paths, report=given.report, again=given.again)


def _verify(given: argparse.Namespace) -> int:
    from gateway.ledger.verify_command import run

    return run(given.receipt, resource=given.resource, rpc=given.rpc, confirmations=given.confirmations,
               contract=given.contract, custodian=given.custodian)


def _verify_audit(given: argparse.Namespace) -> int:
    from gateway.verify_audit_command import run

    return run(load_settings(), as_json=given.json, rpc=given.rpc, contract=given.contract, custodian=given.custodian)


def _rebuild(_: argparse.Namespace) -> int:
    from gateway.upkeep_command import rebuild

    return rebuild(load_settings())


def _fsck(_: argparse.Namespace) -> int:
    from gateway.upkeep_command import fsck

    return fsck(load_settings())


def _keys_backup(given: argparse.Namespace) -> int:
    from gateway.crypto.key_command import backup

    return backup(load_settings().keys_dir, given.file, given.passphrase_file)


def _keys_restore(given: argparse.Namespace) -> int:
    from gateway.crypto.key_command import restore
    from gateway.probes import serving

    settings = load_settings()
    if serving(settings):
        raise Misconfigured(f"a gateway runs on {settings.data_dir}: stop it before its keys are restored")
    return restore(settings.keys_dir, given.file, given.passphrase_file, root=given.root)


def _keys_rotate(given: argparse.Namespace) -> int:
    from gateway.crypto.key_command import rotate

    return rotate(load_settings().keys_dir, given.level, given.patient, given.label)


def _keys_root(_: argparse.Namespace) -> int:
    from gateway.crypto.key_command import show_root

    return show_root(load_settings().keys_dir)


if __name__ == "__main__":
    raise SystemExit(main())
