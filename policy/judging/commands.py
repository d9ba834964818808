"""`policy judge` compares two response files."""

import json
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from policy.judging.answer_files import Answer, Key, PromptRow, cut_notes, duels_of, read_answers
from policy.judging.judges import (
    Duel,
    Endpoint,
    Judge,
    JudgedDuels,
    LLMJudge,
    WinRate,
    by_rule,
    by_user,
    gold,
    named_rule,
    rate_table,
    win_rate,
    with_history,
)
from policy.judging.judges.llm import PRISM, ROLE_PLAY
from policy.judging.judges.rules import Rule
from policy.judging.protocols import prism_duels, psoups_duels
from prm.checkpoint.config_file import read_config
from prm.cli.output import printing
from prm.config import FeedbackConfig
from prm.data.comparison import prompt_key
from prm.data.sources import read_feedback
from prm.errors import DataError, PrmError, counted
from prm.io.disk import make_folder
from prm.io.folders import is_run, refuse_existing, working_in
from prm.io.missing import no_such
from prm.io.rows import Json
from prm.io.tables import parse_json, plain, write_json, write_jsonl, write_text
from prm.metrics import FEW_PEOPLE
from prm.report import show, table
from prm.scoring.user_warnings import is_own_judge, warn_about_gold


def judge_command(args: Namespace) -> None:
    """Judge two response files; print the result, and write `judged.json`, `judged.md` and `duels.jsonl`."""
    folder = Path(args.output)
    make_folder(folder.parent)
    with working_in(folder):
        if not (args.overwrite or args.cost):
            advice = "name another folder by --output, or replace the result by --overwrite"
            refuse_existing(folder / "judged.json", advice)
        _judge(args, folder)


def _judge(args: Namespace, folder: Path) -> None:
    first, second = read_answers(args.first), read_answers(args.second)
    judge, name = judge_of(args, folder / "replies.jsonl")
    duels, remarks = _duels(args, first, second)
    if args.cost:
        if not isinstance(judge, LLMJudge):
            raise PrmError("--cost is for --endpoint: other judges cost nothing")
        show(*remarks, str(judge.cost(duels)))
        return
    judged = judge(duels)
    if len(judged.unjudged) == len(duels):
        raise PrmError(f"there is no win rate: {'; '.join(judged.notes())}")
    rate = win_rate(judged.scores, [duel.user_id for duel in duels], [prompt_key(duel.prompt) for duel in duels])
    cut = cut_notes([(args.first, first), (args.second, second)])
    found = _result(duels, judged, rate, [*remarks, *judged.notes(), *cut])
    result = {"judge": name, "first": args.first, "second": args.second, **found}
    title = f"{args.first} against {args.second}, judged by {name}"
    notes = [_counts(rate, found["people"]), *found["notes"]]
    from prm.report import markdown  # imports matplotlib

    lines = [f"# {title}", "", *markdown(*rate_table(rate)), "", *(f"- {note}" for note in notes)]
    with printing():
        if args.json:
            print(json.dumps(result, ensure_ascii=False))
        else:
            show(table(title, *rate_table(rate)), *notes)
    make_folder(folder)
    write_jsonl(folder / "duels.jsonl", _duel_rows(duels, judged))
    write_text(folder / "judged.md", "\n".join(lines) + "\n")
    write_json(folder / "judged.json", result)  # last: with it the result is complete, and refused to be replaced
    if not args.json:
        print(f"written to {folder / 'judged.md'}")


def _duels(args: Namespace, first: Mapping[Key, Answer], second: Mapping[Key, Answer]) -> tuple[list[Duel], list[str]]:
    """(what is judged, sentences on it for the notes), by the protocol and the log."""
    if args.protocol == "prism":
        return prism_duels(first, second)
    duels = psoups_duels(first, second) if args.protocol == "psoups" else duels_of(first, second)
    if args.log:
        log = read_feedback(FeedbackConfig(path=args.log, source="pairs")).comparisons
        duels = with_history(duels, log, args.max_history)
    return duels, []


def judge_of(args: Namespace, cache: Path) -> tuple[Judge, str]:
    """(the judge that the flags name, its name). Raises `PrmError` unless they name exactly one."""
    flags = [flag for flag in ("rule", "rules", "gold", "endpoint") if getattr(args, flag) is not None]
    if len(flags) != 1:
        raise PrmError(f"give one judge: --rule, --rules, --gold or --endpoint; got {len(flags)}")
    if args.protocol and args.endpoint is None:
        raise PrmError("--protocol is for --endpoint: it says what a language model is asked")
    if args.protocol == "prism" and args.log:
        raise PrmError("--log is not for --protocol prism: its prompts bring their examples along")
    if args.rule is not None:
        return by_rule(named_rule(args.rule)), f"rule {args.rule}"
    if args.rules is not None:
        return by_user(_read_rules(args.rules)), f"the rules of {args.rules}"
    if args.gold is not None:
        read_config(Path(args.gold))
        for path in (args.first, args.second):
            run = path if Path(path).is_dir() else Path(path).parent  # a policy's responses lie in its run folder
            if not is_run(run):
                continue
            if is_own_judge(run, args.gold):
                raise PrmError(
                    f"--gold {args.gold}: {run} was trained on it, and would be judged by its own objective; name a "
                    "reward model that neither side was trained on"
                )
            warn_about_gold(run, args.gold)
        from prm.scoring.scorer import Scorer  # imports torch

        return gold(Scorer.from_pretrained(args.gold)), f"gold {args.gold}"
    if args.model is None:
        raise PrmError("--endpoint needs the model's name: --model NAME")
    endpoint = Endpoint(
        args.endpoint,
        args.model,
        args.key_variable,
        timeout=args.timeout,
        concurrency=args.concurrency,
        price_in=args.price_in,
        price_out=args.price_out,
    )
    judge = LLMJudge(endpoint, cache, PRISM if args.protocol == "prism" else ROLE_PLAY, args.seed)
    protocol = f" (protocol {args.protocol})" if args.protocol else ""
    return judge, f"{args.model} at {args.endpoint}{protocol}"


def _read_rules(path: str) -> dict[str, Rule]:
    if not Path(path).is_file():
        raise PrmError(no_such(path, "file"))
    try:
        rules = parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    texts = {user: rule for user, rule in rules.items() if isinstance(rule, str)} if isinstance(rules, dict) else {}
    if not isinstance(rules, dict) or len(texts) < len(rules):
        raise DataError(f"{path}: expected an object of user ids, each with a rule as text")
    by_user = {}
    for user, rule in texts.items():
        try:
            by_user[user] = named_rule(rule)
        except PrmError as error:
            raise DataError(f"{path}, user {user!r}: {error}") from None
    return by_user


class _Result(TypedDict):
    duels: int
    people: int
    win_rate: dict[str, Json]
    notes: list[str]
    per_user: dict[str, dict[str, int]]


def _result(duels: Sequence[Duel], judged: JudgedDuels, rate: WinRate, notes: Sequence[str]) -> _Result:
    """JSON-ready result; infinite ends of intervals are null."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    words = {1.0: "wins", 0.5: "ties", 0.0: "losses"}
    for duel, score in zip(duels, judged.scores.tolist(), strict=True):
        counts[duel.user_id][words.get(score, "unjudged")] += 1
    people = sum(n.total() > n["unjudged"] for n in counts.values())
    return {
        "duels": len(duels),
        "people": people,
        "win_rate": plain(asdict(rate)),
        "notes": [plain(note) for note in notes],
        "per_user": {
            plain(user): {word: n[word] for word in (*words.values(), "unjudged")} for user, n in counts.items()
        },
    }


def _duel_rows(duels: Sequence[Duel], judged: JudgedDuels) -> list[dict[str, object]]:
    """Each duel with the score of the first response, or null and the reason why it was not judged."""
    rows = []
    for i, (duel, score) in enumerate(zip(duels, judged.scores.tolist(), strict=True)):
        row = PromptRow(duel.prompt, duel.user_id).to_row()
        row |= {"first": duel.first, "second": duel.second, "score": plain(score)}
        rows.append(row | ({"unjudged": judged.unjudged[i]} if i in judged.unjudged else {}))
    return rows


def _counts(rate: WinRate, people: int) -> str:
    counts = (
        f"{counted(rate.wins, 'win')}, {counted(rate.ties, 'tie')}, {rate.losses} losses, {rate.unjudged} not judged"
    )
    if people == 1:
        return f"{counts}, of 1 user: too few for intervals"
    few = "; too few users for reliable intervals" if people < FEW_PEOPLE else ""
    how = "95% intervals by bootstrap over users; of the rate over users, a tie as half, also over shared prompts"
    return f"{counts}, of {counted(people, 'user')}; {how}{few}"
