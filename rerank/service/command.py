"""`rerank serve`: the live service."""

import ipaddress
import logging
import os
import socket
from argparse import Namespace
from typing import Annotated

from prm.checks import Count, Matching, Range, built
from prm.cli.parsing import Parser, typed
from prm.config import Device
from prm.errors import PrmError, counted
from prm.io.endpoint import Endpoint, is_url
from prm.io.folders import is_run
from prm.models.backbone_paths import locate
from rerank.service.config import CANDIDATES, ServiceConfig
from rerank.service.upstream import LOCAL_MODEL, EndpointUpstream, LocalModel, Upstream

logger = logging.getLogger(__name__)

_HOST = Annotated[str, Matching(r"\*|(\*\.)?[\w.-]+|\[[0-9a-fA-F:.]+\]", "such as ranks.example.com, without a port")]
_ORIGIN = Annotated[str, Matching(r"\*|https?://[\w.-]+(:\d+)?", "such as https://example.com, without a path")]
DEFAULT_STORE = "sqlite:///runs/store.db"
_READER_KEY = "READER_API_KEY"
_KEY_VARIABLE = Endpoint.key_variable


def build_serve_parser() -> Parser:
    """Build the parser of `rerank serve`."""
    parser = Parser(
        prog="rerank serve",
        description="Serve a run over HTTP: ranks responses for whoever asks, takes feedback, knows each user better "
        "at the next request, and forgets them on request.",
    )
    parser.add_argument("run", help="run folder, or hub id")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--port",
        type=typed(Annotated[int, Range(0, 65_535)]),
        default=8000,
        help="port to listen on; 0 takes a free one",
    )
    parser.add_argument(
        "--store", default=DEFAULT_STORE, help="database: the path of a SQLite file, or postgresql://..."
    )
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
    parser.add_argument(
        "--upstream",
        help="model that writes the responses of chat completions: the URL of an OpenAI-compatible server, up to /v1, "
        f"or a causal language model by name, folder or hub id; {LOCAL_MODEL} if left out",
    )
    parser.add_argument(
        "-n", "--n", type=typed(Count), default=CANDIDATES, help="responses that a chat completion chooses from"
    )
    parser.add_argument("--key_variable", help=f"environment variable with the upstream's API key; {_KEY_VARIABLE}")
    parser.add_argument(
        "--reader",
        help="URL, up to /v1, of a server that embeds texts with the run's exported backbone ('prm export'); only the "
        "heads are evaluated here",
    )
    parser.add_argument("--reader_model", help="the backbone's name at the reader; not needed if it has a single one")
    parser.add_argument(
        "--reader_digest", help="digest of the export that the reader serves, in its export.json; must be this run's"
    )
    parser.add_argument(
        "--reader_key_variable",
        default=_READER_KEY,
        help="environment variable with the reader's API key, if it has one",
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
    upstream, reader = _upstream_of(args, config), _reader_of(args, config)
    try:
        from rerank.service.http.server import build_server
    except ModuleNotFoundError:
        raise PrmError("the service needs more packages: pip install 'personalized-rm[serve]'") from None
    from prm.models.backbones import device_named
    from prm.scoring.scorer import Scorer
    from rerank.service.engine import Engine
    from rerank.service.http.app import LOOPBACK, build_app
    from rerank.service.pool import read_pool
    from rerank.service.remote_reader import RemoteReader
    from rerank.service.store import Store

    store = Store(args.store)
    local = is_loopback(args.host)
    if not local and not store.has_keys():
        make = f"rerank keys {store.name} add NAMESPACE"
        raise PrmError(f"--host {args.host} can be reached by others, and the store has no API key: make one, {make}")
    if args.require_key and not store.has_keys():
        logger.warning(
            "warning: the store has no API key, so all requests are refused: make one, rerank keys %s add NAMESPACE",
            store.name,
        )
    listening = _listen(args.host, args.port)
    scorer = Scorer.from_pretrained(args.run, args.backbone, device_named(args.device))
    needs_key = args.require_key or not local
    read = None if reader is None else RemoteReader(reader, scorer, args.reader_digest or "")
    pool = read_pool(args.pool, scorer.reader) if args.pool else None
    hosts = args.allowed_host or (LOOPBACK if local else ("*",))
    engine = Engine(scorer, store, config, read)
    app = build_app(engine, needs_key, hosts, args.allow_origin or (), upstream, args.n, pool)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    if needs_key and (
        strange := set(store.key_namespaces().values()) - {"", *(user.partition(":")[0] for user in scorer.users)}
    ):
        logger.warning(
            "warning: no user of the run has an id that begins with %s: to these keys its users are unknown; a key for "
            "all users knows them: rerank keys %s add --all_users",
            " or ".join(f"'{namespace}:'" for namespace in sorted(strange)[:3]),
            store.name,
        )
    if isinstance(upstream, EndpointUpstream) and (trouble := upstream.probe()):
        logger.warning("warning: --upstream %s: %s; chats fail until it answers", args.upstream, trouble)
    host, port = listening.getsockname()[:2]
    known = f"{counted(len(scorer.users), 'user')} of the run, {counted(store.counts()['people'], 'user')} in the store"
    logger.info("serving %s on http://%s:%d; store %s; %s", args.run, host, port, store.name, known)
    build_server(app, host, port, config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address. Raises `PrmError` if it is taken, or not of this machine."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise PrmError(
            f"--host {host} --port {port}: {os.strerror(error.errno or 0)}; name another, or 0 for a free port"
        ) from None


def _upstream_of(args: Namespace, config: ServiceConfig) -> Upstream:
    """The upstream that the flags name; nothing is loaded yet. Raises `PrmError` for one that is not there."""
    name, variable = args.upstream or LOCAL_MODEL, args.key_variable or _KEY_VARIABLE
    if is_url(name):
        return EndpointUpstream(Endpoint(name, key_variable=variable, timeout=config.upstream_timeout))
    if args.key_variable is not None:
        raise PrmError("--key_variable goes with --upstream URL, a server")
    if args.upstream is not None and not is_run(name):
        locate(name)
    return LocalModel(name, config.timeout)


def _reader_of(args: Namespace, config: ServiceConfig) -> Endpoint | None:
    """The reader that the flags name. Raises `PrmError` for flags without one."""
    if args.reader is None:
        if given := [name for name in ("reader_model", "reader_digest") if getattr(args, name) is not None]:
            raise PrmError(f"--{given[0]} goes with --reader URL")
        return None
    return Endpoint(args.reader, args.reader_model or "", args.reader_key_variable, timeout=config.timeout)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
