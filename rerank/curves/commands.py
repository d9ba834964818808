"""`rerank curve`: gain and win rate of best-of-N, measured by another reward model."""

import json
import logging
from argparse import Namespace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from prm.checkpoint.config_file import read_config
from prm.checks import Count, built
from prm.cli.output import printing
from prm.cli.parsing import Parser, typed
from prm.config import Device
from prm.data.comparison import Prompt, parse_prompt
from prm.errors import DataError, PrmError, hint
from prm.io.folders import is_run, working_in
from prm.io.tables import read_values, write_jsonl
from prm.scoring.user_warnings import is_own_judge, warn_about_gold
from rerank.sampling.config import Sampling
from rerank.sampling.generator import Request
from rerank.sampling.generator_flags import add_generator_flags, refuse_missing_generator

if TYPE_CHECKING:
    from prm.scoring.scorer import Scorer

logger = logging.getLogger(__name__)


def build_curve_parser() -> Parser:
    """Build the subcommand's parser."""
    parser = Parser(
        prog="rerank curve",
        description="Sample responses to prompts, pick the best of k for each user with one reward model, and judge "
        "the picks with another one, trained on other data: for every k up to N, beside the oracle and upper bounds.",
    )
    parser.add_argument("run", help="run folder of the reward model that picks")
    parser.add_argument("prompts", help="a .txt file with one prompt per line, or JSON Lines with 'prompt'")
    parser.add_argument("--gold", required=True, help="run folder of the reward model that judges")
    parser.add_argument(
        "--users", action="extend", nargs="+", default=[], help="user ids; all users that both runs know if left out"
    )
    parser.add_argument("-n", "--n", type=typed(Count), default=16, help="maximum number of responses to pick from")
    parser.add_argument("--output", help="folder to write; RUN/curve if left out")
    parser.add_argument("--device", type=typed(Device), help="cpu, cuda, ...; chosen if left out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_generator_flags(parser)
    return parser


def curve_command(args: Namespace) -> None:
    """Sample and judge responses, then print and write the curves."""
    sampling = built(Sampling, args.settings.get("sampling", {}), "sampling")
    prompts = read_prompts(args.prompts)
    for run in (args.run, args.gold):
        read_config(Path(run))
    refuse_missing_generator(args, sampling)
    if is_own_judge(args.run, args.gold):
        raise PrmError(f"--gold {args.gold}: a run cannot judge its own picks; name one that was trained on other data")
    warning = warn_about_gold(args.run, args.gold)

    from prm.report import print_curves, write_curves
    from rerank.curves.best_of import best_of
    from rerank.curves.report_text import panels, sections
    from rerank.ranking.candidates import collect
    from rerank.ranking.open_generator import open_named

    scorer, gold, uniform = _open_scorers(args)
    users = common_users(scorer, gold, args.users)
    what = f"{args.n + 1} responses to each of {len(prompts)} prompts"
    generator = open_named(args, scorer, sampling, what)
    for prompt, location in prompts.items():
        generator.check(Request(prompt, location=location))
    pools = collect(generator, scorer, gold, list(prompts), users, args.n + 1, uniform)
    if not pools:
        raise PrmError("every sampled response is empty; try other prompts or a higher temperature")
    if len(pools) < len(prompts):
        logger.warning("warning: %d prompts left out: all their responses are empty", len(prompts) - len(pools))
    result, title = best_of(pools), f"Best of {args.n}: {args.run}, judged by {args.gold}"
    folder = Path(args.output or Path(args.run) / "curve")
    settings = {"run": args.run, "gold": args.gold, "sampling": sampling.to_dict(), "warning": warning}
    tables = sections(result, warning)
    with printing():
        if args.json:
            print(json.dumps(result.to_dict() | settings))
        else:
            print_curves(sections(result), title)
    with working_in(folder if args.output else args.run):
        write_curves(folder, title, result.to_dict() | settings, tables, panels(result))
        write_jsonl(folder / "pools.jsonl", (pool.to_row() for pool in chain.from_iterable(pools)))
    if not args.json:
        print(f"written to {folder / 'index.html'}")


def _open_scorers(args: Namespace) -> tuple["Scorer", "Scorer", "Scorer | None"]:
    """(the run, the judge, the run's tuned uniform model or `None`); a backbone that they share is in memory once."""
    from prm.models.backbones import device_named
    from prm.models.shared_backbone import BackboneLoader
    from prm.scoring.scorer import Scorer

    device, loader, uniform = device_named(args.device), BackboneLoader(), Path(args.run) / "uniform"
    run, gold = (Scorer.from_pretrained(name, device=device, loader=loader) for name in (args.run, args.gold))
    return run, gold, Scorer.from_pretrained(uniform, device=device, loader=loader) if is_run(uniform) else None


def read_prompts(path: str) -> dict[Prompt, str]:
    """Read a file's distinct prompts, in order, with the location of each. Raises `DataError` naming file and line."""
    locations: dict[Prompt, str] = {}
    for number, value in read_values(path):
        location = f"{path}, line {number}"
        try:
            locations.setdefault(parse_prompt(value.get("prompt") if isinstance(value, dict) else value), location)
        except DataError as error:
            raise DataError(f"{location}: {error}") from None
    return locations


def common_users(scorer: "Scorer", gold: "Scorer", requested: list[str]) -> list[str]:
    """Return the requested users, or all that both models know. Raises `PrmError` for a user that one does not know."""
    for user in requested:
        for name, model in (("the run", scorer), ("the judge", gold)):
            if not model.knows(user):
                raise PrmError(f"--users: {name} does not know {user!r}{hint(user, model.users, 'users')}")
    known = list(dict.fromkeys(requested)) or [user for user in scorer.users if gold.knows(user)]
    if not known:
        raise PrmError("the run and the judge have no user in common")
    return known
