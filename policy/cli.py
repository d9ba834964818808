"""The `policy` command: language models that know whom they answer."""

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from policy.compare.config import CompareConfig
from policy.config import DpoConfig, OnlineConfig, PpoConfig, SftConfig
from policy.judging.commands import JUDGE, SAMPLE, add_judge, add_sample, judge_command, sample_command
from prm.checks import built
from prm.cli.arguments import add_run, config_first, run_command
from prm.cli.parsing import Parser

_TRAINED = {
    "sft": (SftConfig, "Supervised fine-tuning on chosen answers, for nobody in particular"),
    "dpo": (DpoConfig, "Personalised direct preference optimisation (P-DPO), and IPO and the like"),
    "online": (OnlineConfig, "Learning from the rewards of its own answers, by RLOO or GRPO"),
    "ppo": (PpoConfig, "Proximal policy optimisation (PPO) against a personal reward model"),
}

_COMPARED = (
    "Policies side by side: trains what is missing, asks every arm the same, judges, and writes a page: "
    "policy compare CONFIG.yaml [--key value ...]."
)


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(prog="policy", description="Language models that know whom they answer.")
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    for name, (kind, what) in _TRAINED.items():
        usage = f"{what}: policy {name} CONFIG.yaml [--key value ...]. Every key of the YAML is also a flag; flags win."
        add_run(subcommands.add_parser(name, help=what, description=usage), kind)
    copied = "Copy a run with its LoRA adapter merged into a plain language model, OUT/backbone."
    merge = subcommands.add_parser("merge", help="merge a run's adapter into its weights", description=copied)
    merge.add_argument("run", help="run folder that 'policy dpo' made")
    merge.add_argument("output", help="folder of the copy")
    add_sample(subcommands.add_parser("sample", help="answer prompts for people, into a file", description=SAMPLE))
    add_judge(subcommands.add_parser("judge", help="see whose answers win, in whose eyes", description=JUDGE))
    what = "policies side by side: train, answer, judge"
    compare = subcommands.add_parser("compare", help=what, description=_COMPARED)
    add_run(compare, CompareConfig)
    compare.add_argument(
        "--only", action="extend", nargs="+", default=[], help="train these runs and what they need, no more"
    )
    return parser


def _dispatch(args: Namespace) -> None:
    if args.subcommand == "merge":
        from policy.merge import merge_run

        print(f"{merge_run(args.run, args.output)}: done")
    elif args.subcommand in ("sample", "judge"):
        (sample_command if args.subcommand == "sample" else judge_command)(args)
    elif args.subcommand == "compare":
        from policy.compare.command import compare

        folder = compare(built(CompareConfig, args.settings), args.only)
        print(f"{folder}: trained" if args.only else f"written to {folder / 'index.html'}")
    else:
        _train(args.subcommand, built(_TRAINED[args.subcommand][0], args.settings))


def _train(name: str, config: Any) -> None:
    """Train, and say where the run lies and what comes next."""
    if name == "sft":
        from policy.sft import train_sft as train  # they bring in trl, which takes seconds
    elif name == "online":
        from policy.online.train import train_online as train  # type: ignore[assignment]
    elif name == "ppo":
        from policy.ppo.train import train_ppo as train  # type: ignore[assignment]
    else:
        from policy.dpo import train_dpo as train  # type: ignore[assignment]

    run: Path = train(config)
    if int(os.environ.get("RANK", "0")) > 0:
        return  # one process speaks
    print(f"{run}: done")
    if name == "sft":
        print(f"next: policy dpo CONFIG.yaml --backbone.name {run}")
    elif name == "online":
        print(f"next: policy sample {run} PROMPTS.jsonl")
    elif name == "ppo":
        print(f"next: rerank {config.reward} --generator {run} --user USER --prompt PROMPT")
    elif (run / "test.jsonl").exists():
        print(f"next: prm evaluate {run}")


def main(argv: list[str] | None = None) -> None:
    """Entry point of `policy`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in (*_TRAINED, "compare"):
        arguments = [arguments[0], *config_first(arguments[1:])]  # policy dpo CONFIG
    run_command(build_parser(), arguments, _dispatch)


if __name__ == "__main__":
    main()
