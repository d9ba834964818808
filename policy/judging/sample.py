"""`policy sample` writes response files."""

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

from policy.judging.answer_files import read_prompts, sample_answers, warn_about_unknown_users
from policy.judging.arguments import ANSWERS
from prm.checkpoint.config_file import read_config
from prm.checks import built
from prm.errors import PrmError, counted
from prm.io.folders import is_run, working_in
from prm.io.tables import write_jsonl
from prm.models.backbone_paths import locate
from rerank.sampling.config import Sampling


def sample_command(args: Namespace) -> None:
    """Sample responses, and print the path of their file."""
    sampling = built(Sampling, args.settings.get("sampling", {}), "sampling")
    prompts = read_prompts(args.prompts, args.users)
    if is_run(args.run):
        read_config(Path(args.run))
    else:
        locate(args.run)
    if args.output is None and not Path(args.run).is_dir():
        raise PrmError(f"{args.run} is not a folder: name a file with --output")
    from prm.models.backbones import device_named  # slow to import: wrong arguments are refused before
    from rerank.sampling.sampler import Sampler

    sampler = Sampler.from_pretrained(args.run, device_named(args.device), args.dtype)
    warn_about_unknown_users(args.run, sampler, [row.user for row in prompts])
    path = Path(args.output or Path(args.run) / ANSWERS)
    with working_in(args.run) if args.output is None else nullcontext():
        write_jsonl(path, sample_answers(sampler, prompts, sampling, args.batch))
    print(f"{path}: {counted(len(prompts), 'response')}")
