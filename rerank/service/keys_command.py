"""`rerank keys`: API keys of the live service."""

import json
from argparse import Namespace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prm.cli.parsing import Parser
from prm.errors import PrmError, counted, meant

if TYPE_CHECKING:
    from rerank.service.store import Store


def build_keys_parser() -> Parser:
    """Build the parser of `rerank keys`."""
    parser = Parser(
        prog="rerank keys",
        description="API keys of a service: a key may act for every user of its namespace, and for nobody else. "
        "'add' prints a new key, once: the store keeps a digest of it. 'list' shows namespaces, notes and dates. "
        "'remove' removes all keys of a namespace; servers that run refuse them within seconds.",
    )
    parser.add_argument("store", help="database: sqlite:///PATH or postgresql://...")
    parser.add_argument("action", choices=("add", "list", "remove"), help="what to do")
    parser.add_argument("namespace", nargs="?", help="1 to 80 letters, digits, '.', '_' or '-'; with add and remove")
    parser.add_argument("--note", default="", help="who has the key, for the list; with add")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def keys_command(args: Namespace) -> None:
    """Make, list or remove API keys."""
    from rerank.service.store import Store

    if (args.namespace is None) != (args.action == "list"):
        needs = "takes no namespace" if args.action == "list" else "needs a namespace"
        raise PrmError(f"'rerank keys STORE {args.action}' {needs}")
    if args.note and args.action != "add":
        raise PrmError("--note is for 'add'")
    store = Store(args.store, create=args.action == "add")
    try:
        if args.action == "add":
            key = store.add_key(args.namespace, args.note)
            print(json.dumps({"namespace": args.namespace, "key": key}) if args.json else key)
        elif args.action == "list":
            _list(store, args.json)
        else:
            _remove(store, args.namespace, args.json)
    finally:
        store.close()


def _list(store: "Store", as_json: bool) -> None:
    rows = [
        {"namespace": row.namespace, "note": row.note, "created": datetime.fromtimestamp(row.created, UTC).isoformat()}
        for row in store.list_keys()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['namespace']:20} {row['created'][:16].replace('T', ' ')}  {row['note']}".rstrip())


def _remove(store: "Store", namespace: str, as_json: bool) -> None:
    known = {row.namespace for row in store.list_keys()}
    if namespace not in known:
        raise PrmError(f"the store has no key of namespace {namespace!r}{meant(namespace, known)}")
    removed = store.remove_keys(namespace)
    print(json.dumps({"removed": removed}) if as_json else f"removed {counted(removed, 'key')} of {namespace}")
