"""`rerank serve`: the live service."""

import ipaddress
import logging
from argparse import Namespace
from typing import Annotated

from prm.checks import Matching, Range, built
from prm.cli.parsing import Parser, typed
from prm.config import Device
from prm.errors import PrmError
from rerank.service.config import ServiceConfig

logger = logging.getLogger(__name__)

_HOST = Annotated[str, Matching(r"\*|(\*\.)?[\w.-]+|\[[0-9a-fA-F:.]+\]", "such as ranks.example.com, without a port")]
_ORIGIN = Annotated[str, Matching(r"\*|https?://[\w.-]+(:\d+)?", "such as https://example.com, without a path")]
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
    parser.add_argument(
        "--port",
        type=typed(Annotated[int, Range(0, 65_535)]),
        default=8000,
        help="port to listen on; 0 takes a free one",
    )
    parser.add_argument("--store", default=DEFAULT_STORE, help="database: sqlite:///PATH or postgresql://...")
    parser.add_argument(
        "--require_key", action="store_true", help="refuse requests without an API key on loopback, too"
    )
    parser.add_argument(
        "--allowed_host",
        action="append",
        type=typed(_HOST),
        help="name by which the service may be addressed; may be given again",
    )
    parser.add_argument(
        "--allow_origin",
        action="append",
        type=typed(_ORIGIN),
        help="site whose pages may ask from a browser, as https://example.com; may be given again",
    )
    parser.add_argument("--backbone", help="new path of the run's backbone, if it was moved")
    parser.add_argument("--device", type=typed(Device), help="cpu, cuda, ...; chosen if left out")
    parser.add_settings(ServiceConfig, "service")
    return parser


def serve_command(args: Namespace) -> None:
    """Serve until stopped."""
    config = built(ServiceConfig, args.settings.get("service", {}), "service")
    try:
        from rerank.service.http.server import build_server
    except ModuleNotFoundError:
        raise PrmError("the service needs more packages: pip install 'personalized-rm[serve]'") from None
    from prm.models.backbones import device_named
    from prm.scoring.scorer import Scorer
    from rerank.service.engine import Engine
    from rerank.service.http.app import LOOPBACK, build_app
    from rerank.service.store import Store

    store = Store(args.store)
    local = is_loopback(args.host)
    if not local and not store.has_keys():
        make = f"rerank keys {store.name} add NAMESPACE"
        raise PrmError(f"--host {args.host} can be reached by others, and the store has no API key: make one, {make}")
    scorer = Scorer.from_pretrained(args.run, args.backbone, device_named(args.device))
    needs_key = args.require_key or not local
    hosts = args.allowed_host or (LOOPBACK if local else ("*",))
    app = build_app(Engine(scorer, store, config), needs_key, hosts, args.allow_origin or ())
    build_server(app, args.host, args.port, config).run()


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
