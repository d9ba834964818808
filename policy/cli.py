"""The `policy` command: language models that know whom they answer."""

import os
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from policy.compare.config import CompareConfig
from policy.config import DpoConfig, OnlineConfig, PpoConfig, SftConfig
from policy.judging import build_judge_parser, build_sample_parser, judge_command, sample_command
from prm.cli import run_command
from prm.settings import Parser, config_parser, parsed_config

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


def build_parser() -> ArgumentParser:
    """The parser of the command."""
    parser = Parser(prog="policy", description="Language models that know whom they answer.")
    subcommands = parser.add_subcommands(required=True)
    for name, (kind, what) in _TRAINED.items():
        usage = f"{what}: policy {name} CONFIG.yaml [--key value ...]. Every key of the YAML is also a flag; flags win."
        subcommands.add_subcommand(name, config_parser(kind, usage), help=what)
    merge = Parser(description="Copy a run with its LoRA adapter merged into a plain language model, OUT/backbone.")
    merge.add_argument("run", type=str, help="run folder that 'policy dpo' made")
    merge.add_argument("output", type=str, help="folder of the copy")
    subcommands.add_subcommand("merge", merge, help="merge a run's adapter into its weights")
    subcommands.add_subcommand("sample", build_sample_parser(), help="answer prompts for people, into a file")
    subcommands.add_subcommand("judge", build_judge_parser(), help="see whose answers win, in whose eyes")
    subcommands.add_subcommand("compare", _compare_parser(), help="policies side by side: train, answer, judge")
    return parser


def _compare_parser() -> ArgumentParser:
    parser = config_parser(CompareConfig, _COMPARED)
    parser.add_argument("--only", type=str, nargs="+", default=[], help="train these runs and what they need, no more")
    return parser


def _dispatch(parser: ArgumentParser, args: Namespace) -> None:
    chosen = args[args.subcommand]
    if args.subcommand == "merge":
        from policy.merge import merge_run

        print(f"{merge_run(chosen.run, chosen.output)}: done")
        return
    if args.subcommand in ("sample", "judge"):
        (sample_command if args.subcommand == "sample" else judge_command)(chosen)
        return
    if args.subcommand == "compare":
        from policy.compare.command import compare

        only = chosen.pop("only")
        folder = compare(parsed_config(CompareConfig, config_parser(CompareConfig, _COMPARED), chosen), only)
        print(f"{folder}: trained" if only else f"written to {folder / 'index.html'}")
        return
    kind, what = _TRAINED[args.subcommand]
    _train(args.subcommand, parsed_config(kind, config_parser(kind, what), chosen))


def _train(name: str, config: Any) -> None:
    """Train, and say where the run lies and what comes next."""
    if name == "sft":
        from policy.sft import train_sft as train  # they bring in trl, which takes seconds
    elif name == "online":
        from policy.online import train_online as train  # type: ignore[assignment]
    elif name == "ppo":
        from policy.ppo import train_ppo as train  # type: ignore[assignment]
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
    if arguments and arguments[0] in (*_TRAINED, "compare") and len(arguments) > 1 and not arguments[1].startswith("-"):
        arguments.insert(1, "--config")  # policy dpo CONFIG
    run_command(build_parser(), arguments, _dispatch)


if __name__ == "__main__":
    main()
