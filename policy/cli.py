"""The `policy` command: personalised language models."""

import logging
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from policy.compare.config import CompareConfig
from policy.compare.training import plan_jobs
from policy.config import NO_REWARD, DpoConfig, OnlineConfig, PpoConfig, SftConfig
from policy.judging.arguments import JUDGE, PROMPTS, SAMPLE, add_judge, add_prompts, add_sample
from prm.checkpoint.config_file import read_config
from prm.checks import built, require
from prm.cli.arguments import add_run, run_command
from prm.cli.parsing import Parser
from prm.config import RunConfig
from prm.io.folders import refuse_existing
from prm.io.interrupts import resumable
from prm.io.run_files import read_json
from prm.training.early_checks import check_early, read_early, refuse_finished

if TYPE_CHECKING:
    from prm.data.sources import Feedback

logger = logging.getLogger(__name__)

_TRAINING: dict[str, tuple[type[RunConfig], str]] = {
    "sft": (SftConfig, "Supervised fine-tuning on chosen responses, without users"),
    "dpo": (DpoConfig, "Personalised direct preference optimisation (P-DPO), with IPO and other losses"),
    "online": (OnlineConfig, "Online training on the rewards of the policy's own responses, by RLOO or GRPO"),
    "ppo": (PpoConfig, "Proximal policy optimisation (PPO) against a personal reward model"),
}

_COMPARE = (
    "Compare policies: train missing runs, sample every arm on the same prompts, judge, and write a page: "
    "policy compare CONFIG.yaml [--key value ...]."
)


def build_parser() -> Parser:
    """Build the command's parser."""
    parser = Parser(prog="policy", description="Personalised language models.")
    parser.add_package_flags(build_parser)
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    for name, (kind, summary) in _TRAINING.items():
        usage = f"{summary}: policy {name} LOG, or policy {name} CONFIG.yaml, each with [--key value ...]. "
        usage += "Every key of the YAML is also a flag; flags override the YAML."
        add_run(subcommands.add_parser(name, help=summary, description=usage), kind)
    merge_description = "Copy a run with its LoRA adapter merged into a plain language model, OUTPUT/backbone."
    merge = subcommands.add_parser(
        "merge", help="merge a run's adapter into its weights", description=merge_description
    )
    merge.add_argument("run", help="run folder of a policy with an adapter, e.g. of 'policy dpo'")
    merge.add_argument("output", help="folder of the copy")
    prompts_help = "draw the prompts of the paper's Table 2"
    add_prompts(subcommands.add_parser("prompts", help=prompts_help, description=PROMPTS))
    add_sample(subcommands.add_parser("sample", help="sample responses for users into a file", description=SAMPLE))
    add_judge(
        subcommands.add_parser("judge", help="compute win rates between two policies' responses", description=JUDGE)
    )
    summary = "compare policies: train, sample, judge"
    compare = subcommands.add_parser("compare", help=summary, description=_COMPARE)
    add_run(compare, CompareConfig)
    compare.add_argument(
        "--only", action="extend", nargs="+", default=[], help="train only these runs and the ones that they need"
    )
    compare.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _dispatch(args: Namespace) -> None:
    if args.subcommand == "merge":
        read_config(Path(args.run))
        refuse_existing(Path(args.output), "name another folder")
        from policy.merge import merge_run  # imports torch: a missing run is refused before

        print(f"{merge_run(args.run, args.output)}: done")
    elif args.subcommand == "prompts":
        from policy.judging.draw import prompts_command  # imports numpy

        prompts_command(args)
    elif args.subcommand == "sample":
        from policy.judging.sample import sample_command

        sample_command(args)
    elif args.subcommand == "judge":
        from policy.judging.commands import judge_command  # imports numpy

        judge_command(args)
    elif args.subcommand == "compare":
        config = built(CompareConfig, args.settings)
        check_early(config)
        plan_jobs(config)
        from policy.compare.command import compare

        with resumable():
            folder = compare(config, args.only, args.json)
        if not args.json:
            print(f"{folder}: trained" if args.only else f"written to {folder / 'index.html'}")
    else:
        _train(built(_TRAINING[args.subcommand][0], args.settings))


def _train(config: RunConfig) -> None:
    """Train, and print the run folder and a suggested next command."""
    reward = config.reward if isinstance(config, PpoConfig | OnlineConfig) else ""
    if isinstance(config, PpoConfig):
        require(bool(reward), "reward", NO_REWARD)
    if isinstance(config, SftConfig):
        config.check_responses()
        if config.responses and config.data.on_bad_row == "stop":
            from policy.responses import refuse_bad_responses  # numpy

            refuse_bad_responses(config.responses)
    check_early(config, *filter(None, [reward]))
    refuse_finished(config)
    log = read_early(config)
    run = _trained(config, log)
    if int(os.environ.get("RANK", "0")) > 0:
        return  # only the main process prints
    print(f"{run}: done")
    if isinstance(config, SftConfig):
        print(f"next: policy dpo CONFIG.yaml --backbone.name {run}")
    elif isinstance(config, PpoConfig):
        from policy.ppo.metrics import PpoMetrics, trend

        print(trend(read_json(run / "metrics.json", PpoMetrics)["history"]))
        print(f"next: rerank {reward} --generator {run} --user USER --prompt PROMPT")
    elif isinstance(config, DpoConfig) and (run / "test.jsonl").exists():
        print(f"next: prm evaluate {run}")
    else:
        print(f"next: policy sample {run} PROMPTS.jsonl")


def _trained(config: RunConfig, log: "Feedback | None") -> Path:
    """The run folder after training."""
    logger.info("loading torch and TRL")  # takes seconds
    if isinstance(config, SftConfig):
        from policy.sft import train_sft

        return train_sft(config, log=log)
    if isinstance(config, OnlineConfig):
        from policy.online.train import train_online

        return train_online(config, log=log)
    if isinstance(config, PpoConfig):
        from policy.ppo.train import train_ppo

        return train_ppo(config, log=log)
    from policy.dpo import train_dpo

    assert isinstance(config, DpoConfig)
    return train_dpo(config, log=log)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `policy`."""
    run_command(build_parser(), list(sys.argv[1:] if argv is None else argv), _dispatch)
