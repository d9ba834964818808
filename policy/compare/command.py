"""`policy compare`: train what is missing, ask every arm the same, judge, and write the page."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from policy.compare import report_text
from policy.compare.answering import Asking, Rows, answer_arm, answers_path
from policy.compare.config import ArmSpec, CompareConfig, named_in
from policy.compare.judging import by_reward, gold_rewards, mixed_rules, open_gold
from policy.compare.measure import Answered, Kind, Result, measure
from policy.compare.questions import choose_cases, groups_of
from policy.compare.training import Job, needed, plan_jobs, read_seconds, train_jobs
from policy.judging.answer_files import read_asked
from policy.judging.judges import named_rule
from policy.prompts import prompts_that_fit
from prm.checkpoint.checkpoint import digest, environment, is_run, read_config
from prm.cli.output import printing
from prm.data.comparison import Comparison, prompt_key
from prm.errors import PrmError
from prm.evaluation.groups import group_of_people
from prm.io.disk import make_folder
from prm.io.folders import working_in
from prm.io.tables import write_json
from prm.metrics import Array
from prm.report import print_arms, show, table, write_arms
from prm.scoring.user_warnings import is_own_judge
from prm.training.run import Parts, split_parts
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)


def compare(config: CompareConfig, only: Sequence[str] = ()) -> Path:
    """Compare as the config says; returns the folder with `index.html` and `metrics.json`.

    What is there already is kept; a call that was killed goes on where it stopped. Raises `PrmError` for settings
    that make no sense, and where a run is there with other settings.

    Args:
        only: train these runs and what they need, and nothing else.
    """
    config.check()
    folder = Path(config.output_dir)
    make_folder(folder.parent)
    with working_in(folder):
        return _compare(config, folder, only)


def _compare(config: CompareConfig, folder: Path, only: Sequence[str]) -> Path:
    jobs = plan_jobs(config)
    _refuse_missing(config)
    _refuse_own_judge(config, jobs)
    _show_plan(config, jobs, folder)
    parts = split_parts(config)
    _refuse_fields(config, parts)
    make_folder(folder)
    train_jobs(jobs, folder, only)
    if only:
        return folder
    gold, can_judge, unit = open_gold(config)
    asking = _asking(config, parts, can_judge)
    _refuse_learnt(config, jobs, asking.cases)
    rows: dict[str, Rows] = {}
    for name, spec in config.arms.items():
        rows |= answer_arm(name, spec, asking, folder)
    texts = {name: [row["response"] for row in part] for name, part in rows.items()}
    rewards = gold_rewards(gold, asking.cases, texts)
    judge = by_reward(asking.cases, texts, rewards)
    arms = _answered(config, jobs, rows, rewards, read_seconds(folder))
    result = measure(arms, config.base, asking.cases, asking.groups, judge, unit, _in_matrix(config))
    _write(config, asking, jobs, result, texts, rewards)
    return folder


def _refuse_missing(config: CompareConfig) -> None:
    """Raise `PrmError` for a run that the comparison does not train and that is not there, before hours of training."""
    asked = {f"arms.{name}.reward": arm.reward for name, arm in config.arms.items()} | {"judge.gold": config.judge.gold}
    for key, place in asked.items():
        if place and not named_in(place) and not is_run(place):
            raise PrmError(
                f"config key '{key}': there is no run {place}; name a run folder, or a run of 'runs' as {{NAME}}"
            )


def _refuse_own_judge(config: CompareConfig, jobs: Sequence[Job]) -> None:
    """Raise `PrmError` where the judge is what an arm was trained on or picks by: it would win by its own measure."""
    if not config.judge.gold:
        return
    judge = config.place(config.judge.gold)
    planned = {job.folder.resolve(): job.config.to_dict() for job in jobs}
    for name, arm in config.arms.items():
        if any(is_own_judge(config.place(text), judge, planned) for text in (arm.run, arm.reward) if text):
            raise PrmError(
                f"config key 'judge.gold': {judge} is what the arm {name!r} learnt from or picks by, and would "
                "judge it by its own measure; name a reward model that no arm knows"
            )


def _refuse_fields(config: CompareConfig, parts: Parts) -> None:
    """Raise `PrmError` for metadata fields that the log does not have, and for rules that are none: before training."""
    field = config.judge.rule_field
    if field:
        rules = {str(c.metadata[field]) for c in parts.test if c.metadata.get(field)}
        if not rules:
            raise PrmError(
                f"config key 'judge.rule_field': nobody of the held-out part ({len(parts.test)} comparisons) has a "
                f"{field!r} in their metadata"
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
    show(f"{missing} of {len(jobs)} runs to train; {kept} of {len(arms)} arms have answers, kept where still asked for")


def _asking(config: CompareConfig, parts: Parts, can_judge: Any) -> Asking:
    base = Sampler.from_pretrained(config.place(config.arms[config.base].run), day=_day_of(config))
    held = [c for c in parts.test if can_judge(c)]
    if not held:
        raise PrmError("nobody of the held-out part can be judged: see 'judge', and hold out with 'data.test_fraction'")
    room = set(map(prompt_key, prompts_that_fit(base.encoder, [c.prompt for c in held], (), config.max_new_tokens)))
    cases = choose_cases(
        parts.train, held, config.max_users, config.max_prompts, config.seed, lambda c: prompt_key(c.prompt) in room
    )
    groups = groups_of(config.group_by, [*parts.train, *parts.test], cases)
    logger.info("%d questions: %d people", len(cases), len(groups))
    return Asking(config, tuple(cases), groups, base)


def _day_of(config: CompareConfig) -> str:
    """The day that the first run among the arms has for today's, if any: a language model beside it reads the same."""
    places = [config.place(text) for arm in config.arms.values() for text in (arm.run, arm.reward) if text]
    days = [str(read_config(Path(place))["backbone"]["day"]) for place in places if is_run(place)]
    return next(filter(None, days), "")


def _refuse_learnt(config: CompareConfig, jobs: Sequence[Job], cases: Sequence[Comparison]) -> None:
    """Raise `PrmError` where a run of an arm held out other prompts than those that are asked.

    A gold model may have learnt from them: it is not asked to write.
    """
    used = [name for arm in config.arms.values() for name in named_in([arm.run, arm.reward])]
    asked = {prompt_key(c.prompt) for c in cases}
    for job in jobs:
        if job.name not in needed(used, jobs):
            continue
        held = job.folder / "test.jsonl"
        known = {prompt_key(question.prompt) for question in read_asked(str(held))} if held.exists() else set()
        if left := len(asked - known):
            raise PrmError(
                f"{job.folder} did not hold out {left} of the {len(asked)} prompts that are asked: leave data and "
                f"split of 'runs.{job.name}' to the comparison"
            )


def _answered(
    config: CompareConfig,
    jobs: Sequence[Job],
    rows: Mapping[str, Rows],
    rewards: Mapping[str, Array],
    seconds: Mapping[str, float],
) -> dict[str, Answered]:
    found = {}
    for key, spec in config.arms.items():
        own, made_of = named_in(spec.run), needed(named_in([spec.run, spec.reward]), jobs)
        kind = _kind(key, spec, config)
        training = 0.0 if kind in ("prompted", "best of") else _sum(own, seconds)
        for name, n in zip(spec.names(key), spec.best_of or [0], strict=True):
            whole = None if spec.chosen else _sum(made_of, seconds)
            cost = None if spec.chosen else training
            found[name] = Answered(rows[name], rewards[name], kind, n, cost, whole, _known_by(spec, config))
    return found


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
    named: dict[Kind, Any] = {
        "chosen": spec.chosen,
        "generic": spec.as_generic_user,
        "best of": spec.best_of,
        "prompted": spec.prompted,
    }
    return next((kind for kind, is_so in named.items() if is_so), "trained")


def _sum(names: Sequence[str], seconds: Mapping[str, float]) -> float | None:
    """`None` where one of them, or all, were trained elsewhere."""
    known = [seconds.get(name) for name in names]
    return None if not known or None in known else sum(s for s in known if s is not None)


def _in_matrix(config: CompareConfig) -> list[str]:
    """All arms, of best of N the largest alone."""
    return [f"{name} {max(arm.best_of)}" if arm.best_of else name for name, arm in config.arms.items()]


def _write(
    config: CompareConfig,
    asking: Asking,
    jobs: Sequence[Job],
    result: Result,
    texts: Mapping[str, Sequence[str]],
    rewards: Mapping[str, Array],
) -> None:
    folder, found, sentences = Path(config.output_dir), report_text.sections(result), report_text.advice(result)
    sentences = [*mixed_rules(config, asking.cases), *sentences]
    n, prompts = len(asking.cases), len({prompt_key(c.prompt) for c in asking.cases})
    judge = config.place(config.judge.gold) or f"the rule in {config.judge.rule_field}"
    asked = f"{len(asking.groups)} people, {n} questions on {prompts} prompts"
    title = f"{len(result.arms)} arms, {asked}, judged by {judge}"
    runs = {job.name: {"folder": str(job.folder), "digest": digest(job.folder)} for job in jobs}
    about = {"config": config.to_dict(), "seed": config.seed, "questions": len(asking.cases), "runs": runs}
    with printing():
        print_arms(title, sentences, found)
    write_json(folder / "metrics.json", about | environment() | result.to_dict() | {"advice": sentences})
    label = f"gain over {config.base}, {result.unit}"
    side_by_side = report_text.samples(asking.cases, asking.groups, texts, rewards)
    lengths = report_text.length_panels(result)
    write_arms(folder, title, sentences, found, report_text.panels(result), side_by_side, label, lengths)
