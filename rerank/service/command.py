"""`rerank serve`: the live service."""

import ipaddress
import logging
from argparse import Namespace

from prm.checks import Natural, built
from prm.cli.parsing import Parser, typed
from prm.config import Device
from prm.errors import PrmError
from rerank.service.config import ServiceConfig

logger = logging.getLogger(__name__)

DEFAULT_STORE = "sqlite:///runs/store.db"


def build_serve_parser() -> Parser:
    """Build the parser of `rerank serve`."""
    parser = Parser(
        prog="rerank serve",
        description="Serve a run over HTTP: ranks responses for whoever asks, takes feedback, knows each user better "
        "at the next request, and forgets them when told.",
    )
    parser.add_argument("run", help="run folder, or hub id")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=typed(Natural), default=8000, help="port to listen on; 0 takes a free one")
    parser.add_argument("--store", default=DEFAULT_STORE, help="database: sqlite:///PATH or postgresql://...")
    parser.add_argument(
        "--require_key", action="store_true", help="refuse requests without an API key on loopback, too"
    )
    parser.add_argument(
        "--allowed_host", action="append", help="name by which the service may be addressed; may be given again"
    )
    parser.add_argument(
        "--pool",
        help="JSON Lines file of questions for users: prompt and responses; the run's own if left out",
    )
    parser.add_argument("--backbone", help="new path of the run's backbone, if it was moved")
    parser.add_argument("--device", type=typed(Device), help="cpu, cuda, ...; chosen if left out")
    parser.add_settings(ServiceConfig, "service")
    return parser


def serve_command(args: Namespace) -> None:
    """Serve until stopped."""
    config = built(ServiceConfig, args.settings.get("service", {}), "service")
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise PrmError("the service needs more packages: pip install 'personalized-rm[serve]'") from None
    from prm.models.backbones import device_named
    from prm.scoring.scorer import Scorer
    from rerank.service.engine import Engine
    from rerank.service.http.app import LOOPBACK, build_app
    from rerank.service.pool import read_pool
    from rerank.service.store import Store

    store = Store(args.store)
    local = is_loopback(args.host)
    if not local and not store.has_keys():
        raise PrmError(f"--host {args.host} can be reached by others, and the store has no API key: make one first")
    scorer = Scorer.from_pretrained(args.run, args.backbone, device_named(args.device))
    needs_key = args.require_key or not local
    pool = read_pool(args.pool, scorer.reader) if args.pool else None
    hosts = args.allowed_host or (LOOPBACK if local else ("*",))
    app = build_app(Engine(scorer, store, config), needs_key, hosts, pool)
    uvicorn.run(app, host=args.host, port=args.port, log_config=None, access_log=False, server_header=False)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
