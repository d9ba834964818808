"""`rerank keys`: API keys of the live service."""

import json
from argparse import Namespace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prm.cli.parsing import Parser
from prm.errors import PrmError, counted, meant

if TYPE_CHECKING:
    from rerank.service.store import Store

_ALL = "all users"
_ID_DIGITS = 8  # of a key's digest: enough to tell keys apart, and of no use to guess one


def build_keys_parser() -> Parser:
    """Build the parser of `rerank keys`."""
    parser = Parser(
        prog="rerank keys",
        description="API keys of a service: a key may act for every user of its namespace, and for nobody else; one "
        "for all users names the users of a run by their ids as they are. "
        "'add' prints a new key, once: the store keeps a digest of it. 'list' shows ids, namespaces, dates and notes. "
        "'remove' removes one key by its id, or all keys of a namespace; servers that run refuse them within seconds.",
    )
    parser.add_argument("store", help="database: the path of a SQLite file, or postgresql://...")
    parser.add_argument("action", choices=("add", "list", "remove"), help="what to do")
    parser.add_argument(
        "namespace", nargs="?", help="1 to 80 letters, digits, '.', '_' or '-'; with remove also a key's id"
    )
    parser.add_argument(
        "--all_users", action="store_true", help="instead of a namespace: for a run whose users have none in their ids"
    )
    parser.add_argument("--note", default="", help="who has the key, for the list; with add")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def keys_command(args: Namespace) -> None:
    """Make, list or remove API keys."""
    from rerank.service.store import Store

    if args.action == "list" and (args.namespace is not None or args.all_users):
        raise PrmError("'rerank keys STORE list' takes no namespace")
    if args.action != "list" and bool(args.namespace) == args.all_users:
        raise PrmError(f"'rerank keys STORE {args.action}' needs a namespace, or --all_users")
    namespace = "" if args.all_users else args.namespace
    if args.note and args.action != "add":
        raise PrmError("--note is for 'add'")
    store = Store(args.store, create=args.action == "add")
    try:
        if args.action == "add":
            key = store.add_key(namespace, args.note)
            print(json.dumps({"namespace": namespace, "key": key}) if args.json else key)
        elif args.action == "list":
            _list(store, args.json)
        else:
            _remove(store, namespace, args.json)
    finally:
        store.close()


def _list(store: "Store", as_json: bool) -> None:
    rows = [
        {
            "id": row.digest[:_ID_DIGITS],
            "namespace": row.namespace,
            "note": row.note,
            "created": datetime.fromtimestamp(row.created, UTC).isoformat(),
        }
        for row in store.list_keys()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        created = row["created"][:16].replace("T", " ")
        print(f"{row['id']}  {row['namespace'] or _ALL:20} {created}  {row['note']}".rstrip())


def _remove(store: "Store", name: str, as_json: bool) -> None:
    """Remove all keys of a namespace; if there is no such namespace, the key of this id."""
    known = store.list_keys()
    found = [row for row in known if row.namespace == name]
    if not found and len(name) == _ID_DIGITS:
        found = [row for row in known if row.digest.startswith(name)]
        if len(found) > 1:
            raise PrmError(f"{counted(len(found), 'key')} have the id {name}: remove all keys of a namespace")
    if not found:
        names = {row.namespace for row in known}
        whose = f"of the namespace or id {name!r}{meant(name, names)}" if name else "for all users"
        raise PrmError(f"the store has no key {whose}")
    removed, ids = store.remove_keys([row.digest for row in found]), [row.digest[:_ID_DIGITS] for row in found]
    whose = f"{found[0].namespace or _ALL}: {', '.join(ids)}"
    print(json.dumps({"removed": removed, "ids": ids}) if as_json else f"removed {counted(removed, 'key')} of {whose}")
