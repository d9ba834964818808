"""`policy compare`: train missing runs, sample every arm on the same prompts, judge, and write the page."""

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from policy.compare import report_text
from policy.compare.agreement import JudgeReport, judge_report, rewards_of
from policy.compare.answering import Rows, Task, answer_arm, answers_path
from policy.compare.config import ArmSpec, CompareConfig, named_in
from policy.compare.headroom import Headroom, headrooms
from policy.compare.judging import by_reward, gold_rewards, mixed_rules, open_gold
from policy.compare.measure import Answered, Kind, Result, measure
from policy.compare.questions import choose_cases, groups_of
from policy.compare.training import Job, plan_jobs, runs_needed, train_jobs, training_seconds
from policy.judging.answer_files import read_prompts
from policy.judging.judges import named_rule
from policy.prompts import prompts_that_fit
from prm.checkpoint.checkpoint import digest, read_config
from prm.cli.output import printing
from prm.data.comparison import Comparison, prompt_key
from prm.data.past_comparisons import past_by_user
from prm.errors import PrmError, counted
from prm.evaluation.groups import group_of_people
from prm.io.disk import make_folder
from prm.io.environment import environment
from prm.io.folders import is_run, working_in
from prm.io.tables import plain, write_json
from prm.metrics import Array
from prm.report import print_arms, show, table, write_arms
from prm.scoring.user_warnings import is_own_judge, shared_backbone
from prm.training.prepare_log import DataSplit, split_data
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)


def compare(config: CompareConfig, only: Sequence[str] = (), as_json: bool = False) -> Path:
    """Compare the arms of a config; returns the folder with `index.html` and `metrics.json`.

    Keeps finished runs and responses, so that a killed call can be resumed. Raises `PrmError` for invalid settings,
    and if a run exists with other settings.

    Args:
        only: train these runs and their dependencies, and do nothing else.
        as_json: print the content of `metrics.json` instead of tables; with `only` the runs that were trained.
    """
    config.check()
    folder = Path(config.output_dir)
    make_folder(folder.parent)
    with working_in(folder):
        return _compare(config, folder, only, as_json)


def _compare(config: CompareConfig, folder: Path, only: Sequence[str], as_json: bool) -> Path:
    jobs = plan_jobs(config)
    _refuse_missing(config)
    _refuse_own_judge(config, jobs)
    if not as_json:
        _show_plan(config, jobs, folder)
    parts = split_data(config)
    _refuse_fields(config, parts)
    make_folder(folder)
    train_jobs(jobs, folder, only)
    if only:
        if as_json:
            with printing():
                print(json.dumps({"output_dir": str(folder), "runs": _runs(jobs, runs_needed(only, jobs))}))
        return folder
    gold, can_judge, unit = open_gold(config)
    task = _new_task(config, parts, can_judge)
    _refuse_trained_prompts(config, jobs, task.cases)
    rows: dict[str, Rows] = {}
    for name, spec in config.arms.items():
        rows |= answer_arm(name, spec, task, folder)
    texts = {name: [row["response"] for row in part] for name, part in rows.items()}
    rewards = gold_rewards(gold, task.cases, texts)
    judge = by_reward(task.cases, texts, rewards)
    arms = _answered(config, jobs, rows, rewards, training_seconds(folder, jobs))
    result = measure(arms, config.base, task.cases, task.groups, judge, unit, _in_matrix(config))
    judged = judge_report(config, jobs, [c for c in parts.test if can_judge(c)], task.cases, texts)
    headroom = headrooms(arms, gold, task.cases)
    _write(config, task, jobs, result, headroom, judged, texts, rewards, as_json)
    return folder


def _refuse_missing(config: CompareConfig) -> None:
    """Raise `PrmError` for a run that neither exists nor is trained by the comparison, before hours of training."""
    named = {f"arms.{name}.reward": arm.reward for name, arm in config.arms.items()} | {"judge.gold": config.judge.gold}
    for key, path in named.items():
        if path and not named_in(path) and not is_run(path):
            raise PrmError(
                f"config key '{key}': there is no run {path}; name a run folder, or a run of 'runs' as {{NAME}}"
            )


def _refuse_own_judge(config: CompareConfig, jobs: Sequence[Job]) -> None:
    """Raise `PrmError` if an arm was trained on the judge or picks by it: it would be judged by its own objective."""
    if not config.judge.gold:
        return
    judge = config.resolve(config.judge.gold)
    planned = {job.folder.resolve(): job.config.to_dict() for job in jobs}
    for name, arm in config.arms.items():
        if any(is_own_judge(config.resolve(text), judge, planned) for text in (arm.run, arm.reward) if text):
            raise PrmError(
                f"config key 'judge.gold': the arm {name!r} was trained on {judge} or picks by it, and would be "
                "judged by its own objective; name a reward model that no arm uses"
            )
    for run in rewards_of(config, jobs):
        if name := shared_backbone(run, judge, planned):
            logger.warning(
                "warning: the judge %s and the reward %s read %s: the judge overlooks what the reward overlooks",
                judge,
                run,
                name,
            )


def _refuse_fields(config: CompareConfig, parts: DataSplit) -> None:
    """Raise `PrmError` for metadata fields that the log lacks and for invalid rules, before training."""
    field = config.judge.rule_field
    if field:
        rules = {str(c.metadata[field]) for c in parts.test if c.metadata.get(field)}
        if not rules:
            raise PrmError(
                f"config key 'judge.rule_field': no user of the held-out part ({len(parts.test)} comparisons) has "
                f"{field!r} in the metadata"
            )
        for rule in rules:
            named_rule(rule)
    if config.group_by:
        try:
            group_of_people(config.group_by, [*parts.train, *parts.test])
        except PrmError as error:
            raise PrmError(f"config key 'group_by': {error}") from None


def _show_plan(config: CompareConfig, jobs: Sequence[Job], folder: Path) -> None:
    rows = [[job.name, f"{'prm' if job.command == 'train' else 'policy'} {job.command}", job.state] for job in jobs]
    if rows:
        show(table(f"{folder}: runs", ["run", "command", "state"], rows, numeric=3))
    arms = [name for key, arm in config.arms.items() for name in arm.names(key)]
    kept = sum(answers_path(folder, name).is_file() for name in arms)
    missing = sum(job.state != "there" for job in jobs)
    show(f"{missing} of {len(jobs)} runs to train; {kept} of {len(arms)} arms have responses, kept if still valid")


def _new_task(config: CompareConfig, parts: DataSplit, can_judge: Callable[[Comparison], bool]) -> Task:
    base = Sampler.from_pretrained(config.resolve(config.arms[config.base].run), day=_day_of(config))
    held_out = [c for c in parts.test if can_judge(c)]
    if not held_out:
        raise PrmError("no user of the held-out part can be judged: check 'judge' and 'data.test_fraction'")
    fitting = prompts_that_fit(base.encoder, [c.prompt for c in held_out], (), config.max_new_tokens)
    keys = set(map(prompt_key, fitting))
    cases = choose_cases(
        parts.train, held_out, config.max_users, config.max_prompts, config.seed, lambda c: prompt_key(c.prompt) in keys
    )
    groups = groups_of(config.group_by, [*parts.train, *parts.test], cases)
    logger.info("%d prompts with users: %d users", len(cases), len(groups))
    return Task(config, tuple(cases), groups, base, past_by_user(parts.train))


def _day_of(config: CompareConfig) -> str:
    """The date in the chat template of the first run among the arms, if any: language models beside it use the same."""
    paths = [config.resolve(text) for arm in config.arms.values() for text in (arm.run, arm.reward) if text]
    days = [read_config(Path(path)).settings.backbone.day for path in paths if is_run(path)]
    return next(filter(None, days), "")


def _refuse_trained_prompts(config: CompareConfig, jobs: Sequence[Job], cases: Sequence[Comparison]) -> None:
    """Raise `PrmError` if a run of an arm did not hold out all prompts of the comparison.

    A gold model may have been trained on them: it writes no responses.
    """
    names = [name for arm in config.arms.values() for name in named_in([arm.run, arm.reward])]
    prompts = {prompt_key(c.prompt) for c in cases}
    for job in jobs:
        if job.name not in runs_needed(names, jobs):
            continue
        path = job.folder / "test.jsonl"
        held_out = {prompt_key(row.prompt) for row in read_prompts(str(path))} if path.exists() else set()
        if missing := len(prompts - held_out):
            raise PrmError(
                f"{job.folder} did not hold out {missing} of the {len(prompts)} prompts: leave data and split out of "
                f"'runs.{job.name}', so that those of the comparison are used"
            )


def _answered(
    config: CompareConfig,
    jobs: Sequence[Job],
    rows: Mapping[str, Rows],
    rewards: Mapping[str, Array],
    seconds: Mapping[str, float],
) -> dict[str, Answered]:
    answered = {}
    for key, spec in config.arms.items():
        own_run, all_runs = named_in(spec.run), runs_needed(named_in([spec.run, spec.reward]), jobs)
        kind = _kind(key, spec, config)
        training = 0.0 if kind in ("prompted", "best of") else _sum(own_run, seconds)
        for name, n in zip(spec.names(key), spec.best_of or [0], strict=True):
            total = None if spec.chosen else _sum(all_runs, seconds)
            own = None if spec.chosen else training
            answered[name] = Answered(rows[name], rewards[name], kind, n, own, total, _known_by(spec, config))
    return answered


def _known_by(spec: ArmSpec, config: CompareConfig) -> str | None:
    same = [
        name
        for name, arm in config.arms.items()
        if replace(arm, as_generic_user=True) == spec and not arm.as_generic_user
    ]
    return same[0] if same else None


def _kind(name: str, spec: ArmSpec, config: CompareConfig) -> Kind:
    if name == config.base:
        return "base"
    flags: dict[Kind, object] = {
        "chosen": spec.chosen,
        "generic": spec.as_generic_user,
        "best of": spec.best_of,
        "prompted": spec.prompted or spec.max_history,
    }
    return next((kind for kind, is_set in flags.items() if is_set), "trained")


def _runs(jobs: Sequence[Job], names: Collection[str]) -> dict[str, dict[str, str]]:
    """Folder and digest of each of these trained runs."""
    return {job.name: {"folder": str(job.folder), "digest": digest(job.folder)} for job in jobs if job.name in names}


def _sum(names: Sequence[str], seconds: Mapping[str, float]) -> float | None:
    """Total seconds; `None` if there are no runs, or one of them was trained elsewhere."""
    known = [seconds.get(name) for name in names]
    return None if not known or None in known else sum(s for s in known if s is not None)


def _in_matrix(config: CompareConfig) -> list[str]:
    """All arms; of best of N only the largest N."""
    return [f"{name} {max(arm.best_of)}" if arm.best_of else name for name, arm in config.arms.items()]


def _write(
    config: CompareConfig,
    task: Task,
    jobs: Sequence[Job],
    result: Result,
    headroom: Mapping[str, Headroom],
    judged: JudgeReport,
    texts: Mapping[str, Sequence[str]],
    rewards: Mapping[str, Array],
    as_json: bool,
) -> None:
    folder, sections = Path(config.output_dir), [*report_text.sections(result), judged.section()]
    sentences = [*mixed_rules(config, task.cases), *judged.sentences(), *report_text.advice(result)]
    lead = report_text.headroom_section(headroom, _in_matrix(config), result.unit)
    n, prompts = len(task.cases), len({prompt_key(c.prompt) for c in task.cases})
    judge = config.resolve(config.judge.gold) or f"the rule in {config.judge.rule_field}"
    people, responses = counted(len(task.groups), "user"), counted(n, "response")
    size = f"{people}, {counted(prompts, 'prompt')}, {responses} of each arm"
    title = f"{len(result.arms)} arms, {size}, judged by {judge}"
    runs = _runs(jobs, [job.name for job in jobs])
    about = {"config": config.to_dict(), "seed": config.seed, "questions": len(task.cases), "runs": runs}
    share = {"headroom_share": plain({name: asdict(one) for name, one in headroom.items()})}
    metrics = {**share, **about, **environment(), **result.to_dict(), "judge": judged.to_dict(), "advice": sentences}
    with printing():
        if as_json:
            print(json.dumps(metrics, ensure_ascii=False))
        else:
            print_arms(title, sentences, sections, lead)
    write_json(folder / "metrics.json", metrics)
    label = f"gain over {config.base}, {result.unit}"
    side_by_side = report_text.samples(task.cases, task.groups, texts, rewards)
    lengths = report_text.length_panels(result)
    write_arms(folder, title, sentences, sections, report_text.panels(result), side_by_side, label, lengths, lead)
