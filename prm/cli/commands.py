"""The functions of the `prm` commands."""

import json
import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from prm.checkpoint.config_file import read_config
from prm.cli.output import printing
from prm.cli.pages import cold_start_page, evaluation_page, refuse_no_page
from prm.config import BackboneConfig, FeedbackConfig, RewardModelConfig, TrainConfig, UserConfig
from prm.errors import DataError, PrmError, counted, some
from prm.evaluation.compare.config import CompareModelsConfig
from prm.evaluation.overlap import how_to_hold_out
from prm.io.disk import remove
from prm.io.folders import refuse_existing, working_in
from prm.io.interrupts import resumable
from prm.io.run_files import read_group, read_run, result_file
from prm.io.tables import read_rows, require_log, write_json, write_jsonl
from prm.io.yaml_settings import feedback_config, feedback_like_a_runs, read_train_config
from prm.models.backbone_paths import locate
from prm.scale.ray_engine import require_ray
from prm.scale.requests import parse_request, scored_row
from prm.scoring.user_warnings import warn_about_users
from prm.training.early_checks import check_early, read_early, refuse_finished, refuse_workers

if TYPE_CHECKING:
    from prm.data.sources import Feedback
    from prm.experiments.experiment_parts import ExperimentRow
    from prm.scale.ray_features import RayWorkers
    from prm.scoring.scorer import Scorer

logger = logging.getLogger(__name__)


def train_command(config: TrainConfig, args: Namespace) -> None:
    """Train, and print the run folder."""
    check_early(config)
    _refuse_flags_of_ray(args)
    if args.engine == "ray" and not config.start_from:  # whose settings are inherited, and then checked
        refuse_workers(config)
    refuse_finished(config)
    log = read_early(config)
    logger.info("loading torch and TRL")
    from prm.training.run import train  # takes seconds: what is wrong is refused before

    with _workers(args) as workers:
        run = train(config, log, workers=workers)
    if int(os.environ.get("RANK", "0")) > 0:
        return  # only the first process prints
    print(f"{run}: done")
    print(next_command(run))


def _refuse_flags_of_ray(args: Namespace) -> None:
    """Raise `PrmError` for flags of Ray's workers without Ray, and if it is not installed."""
    if args.engine == "ray":
        require_ray()
    for flag in ("workers", "device"):
        if getattr(args, flag) is not None and args.engine != "ray":
            raise PrmError(f"--{flag} goes with --engine ray")


def _workers(args: Namespace) -> "AbstractContextManager[RayWorkers | None]":
    """Ray's workers, if they are asked for."""
    if args.engine != "ray":
        return nullcontext()
    from prm.scale.ray_features import RayWorkers

    return RayWorkers(args.device, args.workers)


def next_command(run: Path) -> str:
    """What to do with a trained reward model, by whether comparisons were held out."""
    if (run / "test.jsonl").exists():
        return f"next: prm evaluate {run}"
    return (
        "nothing was held out: with --data.test_fraction 0.2, 'prm evaluate' says what the model is worth\n"
        f"next: prm score {run} --user USER --prompt PROMPT --response A B"
    )


def evaluate_command(args: Namespace) -> None:
    """Evaluate a run on labelled comparisons, with baselines; write the results to the run folder."""
    refuse_no_page(args.page)
    with working_in(args.run):
        data, feedback = _read_labelled(args)
        from prm.checkpoint.checkpoint import refresh_card
        from prm.evaluation.evaluate import evaluate_run
        from prm.report import print_evaluation

        result = evaluate_run(
            args.run, feedback.comparisons, args.against, args.backbone, args.by, args.interval_over, args.groups
        )
        with printing():
            if args.json:
                print(json.dumps(result.to_dict()))
            else:
                print_evaluation(result, f"{args.run} on {data}")
        _keep(args.run, "evaluation", data, result.to_dict(), feedback)
        evaluation_page(args, data, feedback, result)
        refresh_card(Path(args.run))  # with these results


def compare_command(config: CompareModelsConfig, args: Namespace) -> None:
    """Compare user models on one log; write the results, a page, and the YAML that trains the best of them."""
    check_early(config)
    _refuse_flags_of_ray(args)
    locate(config.backbone.name)
    from prm.evaluation.compare.outcome import compare_and_write
    from prm.report import print_model_comparison, write_model_comparison

    with resumable(), _workers(args) as workers:
        outcome = compare_and_write(config, workers)
    data, folder = config.data.path, Path(config.output_dir)
    write_model_comparison(outcome.result, outcome.verdict, outcome.recipe, folder, data)
    with printing():
        if args.json:
            print((folder / "compare.json").read_text(encoding="utf-8"), end="")
            return
        print_model_comparison(outcome.result, outcome.verdict, f"user models on {data}")
        print(f"written to {folder / 'index.html'}")
        if outcome.recipe:
            print(f"next: prm train {outcome.recipe_file}  # on all comparisons; above, each was held out once")
        else:
            print(f"{outcome.recipe_file} is not written: a rule predicts best, and 'prm train' trains no rule")
            print(f"next: collect more comparisons of each user, then compare again: prm compare {data}")


def audit_command(args: Namespace) -> None:
    """Audit a run: print tables, and write a page and the results to the run folder."""
    _refuse_missing(args)
    from prm.evaluation.audit import audit_run  # imports scipy
    from prm.evaluation.audit.flagged_words import read_phrases
    from prm.report import print_audit, write_audit

    phrases = read_phrases(args.words) if args.words is not None else None
    with working_in(args.run):
        data, feedback = _read_labelled(args)
        result = audit_run(args.run, feedback.comparisons, phrases, args.against, args.backbone)
        folder, title = Path(args.run) / "audit", f"{args.run} on {data}"
        with printing():
            if args.json:
                print(json.dumps(result.to_dict(), ensure_ascii=False))
            else:
                print_audit(result, title)
        _keep(args.run, "audit", data, result.to_dict(), feedback)
        write_audit(result, folder, title)
    if not args.json:
        print(f"written to {folder / 'index.html'}")


def _keep(run: str, what: str, data: str, result: Mapping[str, object], feedback: "Feedback") -> None:
    """Write results on a log to the run folder, with the rows that were left out, if any, in a second file."""
    path = result_file(run, what, Path(data).stem)
    write_json(path, {"data": data, **result})
    skipped = path.with_name(f"{path.stem}-skipped.jsonl")
    if feedback.skipped:
        write_jsonl(skipped, feedback.skipped)
    else:
        remove(skipped)  # of an earlier version of the log


def _read_labelled(args: Namespace) -> tuple[str, "Feedback"]:
    """(path, its feedback) of the log that a command names, or of the run's own held-out part."""
    _refuse_missing(args)
    data: str = args.log or str(Path(args.run) / "test.jsonl")
    file = Path(data)
    if not args.log and not file.is_file():
        chose = read_run(Path(args.run)).get("data", {}).get("validation_comparisons")
        raise PrmError(
            f"{args.run} holds no test.jsonl: nothing was held out{' but what chose the checkpoint' if chose else ''}. "
            f"Name a log that it was not trained on, or {how_to_hold_out(Path(args.run))}"
        )
    # the test.jsonl of this run or another holds comparisons, whatever the source of their run
    of_a_run = file.name == "test.jsonl" and (file.parent / "config.json").is_file()
    if not args.log:
        return data, _readable(args, FeedbackConfig(path=data))
    earlier = {} if of_a_run else read_group(Path(args.run), "data")
    require_log(data)
    from prm.data.sources.fields import columns_named

    config, taken = feedback_like_a_runs(args.settings.get("data", {}), data, earlier)
    if taken:
        logger.info("%s is read with these data settings of the run: %s", data, ", ".join(taken))
    # the new log may lack columns that the run's own log had besides the required ones
    return data, _readable(args, config, columns_named(earlier) - columns_named(args.settings.get("data", {})))


def _refuse_missing(args: Namespace) -> None:
    """Raise `PrmError` for a run, or a backbone, that is not there."""
    for run in (args.run, getattr(args, "against", None)):
        if run is not None:
            read_config(Path(run))
    if args.backbone is not None:
        locate(args.backbone)


def _readable(args: Namespace, config: FeedbackConfig, optional: Set[str] = frozenset()) -> "Feedback":
    """The feedback of a log. Rows that the command's run cannot read are an error, or are skipped if asked for.

    For a log that the command names, what happened to its rows is logged.
    """
    from prm.data.sources import read_feedback

    run, feedback = Path(args.run), read_feedback(config, optional)
    faults = feedback.faults()
    from prm.training.unreadable_rows import encoder_of_run, readable  # imports torch

    encoder, texts = (
        encoder_of_run(run, args.backbone),
        read_config(run).settings.user_text,
    )  # a policy reads it there
    feedback = readable(feedback, encoder, config.on_bad_row == "skip", texts=texts)
    for line in [*feedback.account(), *faults] if args.log else []:
        logger.info("%s", line)
    return feedback


def score_command(args: Namespace) -> None:
    """Score responses to one prompt given by flags, or a file of requests."""
    if (args.input is None) == (args.prompt is None):
        raise PrmError("give either --prompt with one or more --response, or --input FILE")
    if args.prompt is not None and not args.response:
        raise PrmError("--prompt needs at least one --response")
    if args.input is not None and (args.user is not None or args.user_text or args.response):
        raise PrmError("--user, --user_text and --response go with --prompt: in a file each row has its own")
    if args.engine is not None:
        _score_files(args)
        return
    refuse_flags_of_engines(args)
    requests: Sequence[tuple[int, Mapping[str, object]]]
    if args.input is None:
        request = {"user_id": args.user, "prompt": args.prompt, "responses": args.response, "user_text": args.user_text}
        requests = [(1, request)]
    elif has_magic(args.input) or Path(args.input).suffix in (".csv", ".tsv", ".parquet"):
        raise PrmError(f"{args.input}: add --engine local and --output FOLDER, to score CSV, Parquet or several files")
    else:
        requests = list(read_rows(args.input))
    _refuse_missing(args)
    from prm.models.backbones import device_named
    from prm.scoring.scorer import Scorer

    scorer = Scorer.from_pretrained(args.run, args.backbone, device_named(args.device))
    warn_about_users(scorer, [str(user) for _, row in requests if isinstance(user := row.get("user_id"), str | int)])
    origin = args.input or "the command line"
    rows = list(score_rows(scorer, requests, origin))
    if args.output:
        write_jsonl(args.output, rows)
    elif args.input or args.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        generic = f"the generic user ({args.user!r} is not in the model)" if args.user else "the generic user"
        user = args.user if rows[0]["known_user"] else generic
        print(f"rewards for {user}, in logits: a difference of 1 means odds of 2.7 to 1")
        rewards = rows[0]["rewards"]
        assert isinstance(rewards, list)
        for reward, response in zip(rewards, args.response, strict=True):
            print(f"{reward:9.4f}  {response}")


def refuse_flags_of_engines(args: Namespace) -> None:
    """Raise `PrmError` for flags of `--engine` without it."""
    if args.workers is not None:
        raise PrmError("--workers goes with --engine ray")
    if args.on_bad_row != "stop":
        raise PrmError(f"--on_bad_row {args.on_bad_row} goes with --engine")


def _score_files(args: Namespace) -> None:
    """Score files of any size into a folder of shards."""
    if args.input is None or args.output is None:
        raise PrmError("--engine scores files into a folder: give --input FILES and --output FOLDER")
    _refuse_missing(args)
    if args.engine == "ray":
        require_ray()
    from prm.scale.score_files import score_files

    score_files(
        args.run,
        args.input,
        args.output,
        args.engine,
        args.backbone,
        args.device,
        args.workers,
        on_bad_row=args.on_bad_row,
    )


def score_rows(
    scorer: "Scorer", requests: Sequence[tuple[int, Mapping[str, object]]], origin: str
) -> Iterator[dict[str, object]]:
    """Yield each request with `rewards` (or `reward`, if it has `response`) and `known_user` added.

    All requests are checked and scored together. Raises `DataError` naming file and line of a bad one.
    """
    parsed = []
    for number, row in requests:
        try:
            asked = parse_request(row)
            for response in asked.responses:
                scorer.reader.check(asked.prompt, response, asked.user_text)
        except PrmError as error:
            raise DataError(f"{origin}, line {number}: {error}") from None
        parsed.append(asked)
    flat = [(a.prompt, response, a.user, a.user_text) for a in parsed for response in a.responses]
    prompts, all_responses, users, texts = zip(*flat, strict=True)
    rewards = iter(scorer.score_batch(prompts, all_responses, users, texts).tolist())
    for (_, row), asked in zip(requests, parsed, strict=True):
        values = [next(rewards) for _ in asked.responses]
        yield scored_row(row, asked, values, scorer.knows(asked.user))


def adapt_command(args: Namespace) -> None:
    """Fit new users, and known users with further comparisons, in a finished run."""
    run, output = Path(args.run), Path(args.output) if args.output is not None else None
    if output is not None:
        refuse_existing(output, "name another folder")
    _, feedback = _read_labelled(args)
    from prm.scoring.adapt_run import adapt_run, warn_about_similar_ids

    warn_about_similar_ids(run, feedback.comparisons)
    if feedback.without:
        users, names = counted(len(feedback.without), "user"), some([repr(user) for user in feedback.without])
        logger.warning("not added, as no comparison is left: %s: %s", users, names)
    result = adapt_run(run, feedback.comparisons, output, args.refit, args.backbone, feedback.skipped)
    for what, counts in {"fitted": result.new, "updated": result.further}.items():
        if counts:
            low, high = min(counts.values()), max(counts.values())
            many = counted(low, "comparison") if low == high else f"{low} to {high} comparisons"
            print(f"{what} {counted(len(counts), 'user')} with {many}{' each' if len(counts) > 1 else ''}")
    print(f"{output or run}: {counted(result.steps, 'step')}, {result.seconds:.1f} s; no other user's scores changed")


def cold_start_command(args: Namespace) -> None:
    """Evaluate new users after training on their first k comparisons."""
    refuse_no_page(args.page)
    with working_in(args.run):
        data, feedback = _read_labelled(args)
        from prm.evaluation.cold_start import cold_start_run
        from prm.report import print_cold_start

        result = cold_start_run(
            args.run, feedback.comparisons, args.after, args.holdout_by, args.seed, args.against, args.backbone
        )
        with printing():
            if args.json:
                print(json.dumps(result.to_dict()))
            else:
                print_cold_start(result, f"{args.run} on new users of {data}")
        _keep(args.run, "cold_start", data, result.to_dict(), feedback)
        cold_start_page(args, data, result)


def pool_command(args: Namespace) -> None:
    """Combine the gains of several evaluated runs."""
    from prm.evaluation.pooled_runs import pool

    result = pool(args.runs, args.data, args.more_than)
    from prm.report import print_pooled

    if args.json:
        print(json.dumps(result.to_dict()))
    else:
        print_pooled(result)


def forget_command(args: Namespace) -> None:
    """Remove a user from a run."""
    read_config(Path(args.run))
    from prm.scoring.forget_user import forget_user

    remaining = forget_user(args.run, args.user)
    print(f"{args.user} is removed from {args.run}; shared weights that were trained on their comparisons stay")
    for path in remaining:
        print(f"not removed by this command: {path}")


def describe_command(args: Namespace) -> None:
    """Describe a feedback log before training on it."""
    from prm.data.sources import read_feedback

    config = feedback_config(args.settings.get("data", {}), args.path)
    if args.backbone != "none":
        locate(args.backbone)
    feedback = read_feedback(config)
    from prm.data.profile import describe  # imports scipy: faults of the log are reported first
    from prm.report import print_profile, write_profile

    encoder = None
    if args.backbone != "none":
        from prm.training.unreadable_rows import encoder_of_config

        backbone = BackboneConfig(args.backbone, max_length=args.max_length)
        encoder = encoder_of_config(backbone, UserConfig(num_virtual_tokens=1), RewardModelConfig())
    description = describe(feedback, encoder)
    with printing():
        if args.json:
            print(json.dumps(description.to_dict(), ensure_ascii=False))
        else:
            print_profile(description, args.path)
    if args.output:
        write_profile(description, Path(args.output), args.path)
        if feedback.skipped:
            write_jsonl(Path(args.output) / "skipped.jsonl", feedback.skipped)
        if not args.json:
            print(f"written to {Path(args.output) / 'index.html'}")


def reproduce_command(args: Namespace) -> None:
    """Run an experiment of the paper row by row; tables and pictures are rewritten after each row."""
    from prm.experiments import EXPERIMENTS, judge

    experiment, folder, configs = EXPERIMENTS[args.name], Path(args.output_dir), Path(args.configs)
    files = [configs / f"{experiment.config}.yaml"]
    laptop = args.scale == "laptop"
    if laptop:
        files.append(configs / "laptop" / files[0].name)

    def configure(row: "ExperimentRow") -> TrainConfig:
        output = {"output_dir": str(folder / "rows" / args.scale / row.name)}
        return read_train_config(*files, settings={**row.settings, **(row.laptop if laptop else {}), **output})

    for row in experiment.rows:
        configure(row)  # wrong settings are refused before torch is imported
    from prm.experiments.run import run_rows
    from prm.report import print_experiments, write_experiments

    with resumable():
        for results in run_rows(experiment, configure, "prompts" if laptop else "people"):
            judged = judge(experiment, results)
            write_experiments(experiment, results, judged, folder / args.name, args.scale)
            if len(results) < len(experiment.rows):
                continue
            if args.json:
                print((folder / args.name / "results.json").read_text(encoding="utf-8"), end="")
            else:
                print_experiments(experiment, results, judged)
                print(f"written to {folder / args.name / 'index.html'}")
