"""`policy sample` and `policy judge`: answers into files, and who wins."""

import json
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from policy.judging.answer_files import (
    ANSWERS,
    Asked,
    cut_notes,
    duels_of,
    read_answers,
    read_asked,
    sample_answers,
    warn_about_unknown_users,
)
from policy.judging.judges import (
    Duel,
    Endpoint,
    Judge,
    JudgedDuels,
    LLMJudge,
    WinRate,
    by_person,
    by_rule,
    gold,
    named_rule,
    rate_table,
    win_rate,
    with_past,
)
from prm.checks import Count, Natural, NonNegative, built
from prm.cli.output import printing
from prm.cli.parsing import Parser, typed
from prm.config import Dtype, FeedbackConfig
from prm.data.comparison import prompt_key
from prm.data.sources import read_feedback
from prm.errors import DataError, PrmError
from prm.io.disk import make_folder
from prm.io.folders import working_in
from prm.io.tables import parse_json, plain, write_json, write_jsonl, write_text
from prm.metrics import FEW_PEOPLE
from prm.report import markdown, show, table
from prm.scoring.user_warnings import is_own_judge, warn_about_gold
from rerank.sampling.config import Sampling

SAMPLE = (
    "One answer to each prompt for the person who asks it, into a file that 'policy judge' reads. "
    "PROMPTS is JSON Lines of prompt, user_id and user_text; a run's test.jsonl is such a file."
)
JUDGE = (
    "Whose answers would people rather get? Two files of answers (or folders that hold answers.jsonl) "
    "to the same prompts for the same people, and one judge: --rule, --rules, --gold or --endpoint."
)


def add_sample(parser: Parser) -> None:
    """The flags of `policy sample`."""
    parser.add_argument("run", help="a policy's run folder, or a causal language model by name or folder")
    parser.add_argument("prompts", help="JSON Lines of prompt and, where --users is not given, user_id")
    parser.add_argument(
        "--users", action="extend", nargs="+", default=[], help="ask each prompt as each of these people"
    )
    parser.add_argument("--output", help=f"JSON Lines file to write; RUN/{ANSWERS} if left out")
    parser.add_settings(Sampling, "sampling")
    parser.add_argument("--batch", type=typed(Count), default=16, help="prompts that are answered together")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="auto", help="of the weights, as in 'rerank'")
    parser.add_argument("--device", help="cpu, cuda, ...; chosen if left out")


def sample_command(args: Namespace) -> None:
    """Sample, and say where the answers lie."""
    sampling = built(Sampling, args.settings.get("sampling", {}), "sampling")
    if args.output is None and not Path(args.run).is_dir():
        raise PrmError(f"{args.run} is no folder: name a file with --output")
    asked = read_asked(args.prompts, args.users)
    import torch  # slow to import; bad flags should not have to wait for it

    from rerank.sampling.sampler import Sampler

    sampler = Sampler.from_pretrained(args.run, torch.device(args.device) if args.device else None, args.dtype)
    warn_about_unknown_users(args.run, sampler, [question.user for question in asked])
    path = Path(args.output or Path(args.run) / ANSWERS)
    with working_in(args.run) if args.output is None else nullcontext():
        write_jsonl(path, sample_answers(sampler, asked, sampling, args.batch))
    print(f"{path}: {len(asked)} answers")


def add_judge(parser: Parser) -> None:
    """The flags of `policy judge`."""
    parser.add_argument("first", help="JSON Lines of prompt, user_id and response")
    parser.add_argument("second", help="the same of the other side")
    parser.add_argument("--rule", help="'longer', 'shorter' or 'contains:PHRASE', for everybody")
    parser.add_argument("--rules", help='JSON file of a rule for each person: {"anna": "shorter"}')
    parser.add_argument("--gold", help="run folder of a reward model that was trained on other data")
    parser.add_argument("--endpoint", help="URL of an OpenAI-compatible endpoint, as far as /v1")
    parser.add_argument("--model", help="the model's name at the endpoint")
    parser.add_argument("--key_variable", default="OPENAI_API_KEY", help="environment variable with its key")
    parser.add_argument("--price_in", type=typed(NonNegative), help="of a million tokens of questions")
    parser.add_argument("--price_out", type=typed(NonNegative), help="of a million tokens of replies")
    parser.add_argument("--log", help="comparisons that tell the endpoint's model of people's taste")
    parser.add_argument(
        "--past", type=typed(Natural), default=5, help="most of a person's earlier choices that it is told"
    )
    parser.add_argument("--cost", action="store_true", help="say what asking the endpoint takes, and ask nothing")
    parser.add_argument("--output", default="runs/judged", help="folder for the result, duels and replies")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def judge_command(args: Namespace) -> None:
    """Judge; print, and write `judged.json`, `judged.md` and `duels.jsonl`."""
    folder = Path(args.output)
    make_folder(folder.parent)
    with working_in(folder):
        _judge(args, folder)


def _judge(args: Namespace, folder: Path) -> None:
    first, second = read_answers(args.first), read_answers(args.second)
    duels = duels_of(first, second)
    judge, name = judge_of(args, folder / "replies.jsonl")
    if args.log:
        log = read_feedback(FeedbackConfig(path=args.log)).comparisons
        duels = with_past(duels, log, args.past)
    if args.cost:
        if not isinstance(judge, LLMJudge):
            raise PrmError("--cost is for --endpoint: other judges cost nothing")
        show(str(judge.cost(duels)))
        return
    judged = judge(duels)
    if len(judged.unjudged) == len(duels):
        raise PrmError(f"there is no win rate: {'; '.join(judged.notes())}")
    rate = win_rate(judged.scores, [duel.user_id for duel in duels], [prompt_key(duel.prompt) for duel in duels])
    cut = cut_notes([(args.first, first), (args.second, second)])
    found = {"judge": name, "first": args.first, "second": args.second, **_result(duels, judged, rate, cut)}
    title = f"{args.first} against {args.second}, judged by {name}"
    notes = [_counts(rate, found["people"]), *found["notes"]]
    lines = [f"# {title}", "", *markdown(*rate_table(rate)), "", *(f"- {note}" for note in notes)]
    with printing():
        if args.json:
            print(json.dumps(found, ensure_ascii=False))
        else:
            show(table(title, *rate_table(rate)), *notes)
    make_folder(folder)
    write_json(folder / "judged.json", found)
    write_jsonl(folder / "duels.jsonl", _duel_rows(duels, judged))
    write_text(folder / "judged.md", "\n".join(lines) + "\n")
    if not args.json:
        print(f"written to {folder / 'judged.md'}")


def judge_of(args: Namespace, cache: Path) -> tuple[Judge, str]:
    """(the judge that the flags ask for, its name). Raises `PrmError` unless they ask for one."""
    given = [flag for flag in ("rule", "rules", "gold", "endpoint") if getattr(args, flag) is not None]
    if len(given) != 1:
        raise PrmError(f"give one judge: --rule, --rules, --gold or --endpoint; got {len(given)}")
    if args.rule is not None:
        return by_rule(named_rule(args.rule)), f"rule {args.rule}"
    if args.rules is not None:
        return by_person(_read_rules(args.rules)), f"the rules of {args.rules}"
    if args.gold is not None:
        from prm.models.backbones import is_run
        from prm.scoring.scorer import Scorer

        for given in (args.first, args.second):
            run = given if Path(given).is_dir() else Path(given).parent  # answers lie in the run that they are of
            if not is_run(run):
                continue
            if is_own_judge(run, args.gold):
                raise PrmError(
                    f"--gold {args.gold}: {run} learnt from it, and it would judge by its own measure; name a reward "
                    "model that neither side knows"
                )
            warn_about_gold(run, args.gold)
        return gold(Scorer.from_pretrained(args.gold)), f"gold {args.gold}"
    if args.model is None:
        raise PrmError("--endpoint needs the model's name: --model NAME")
    prices = {"price_in": args.price_in, "price_out": args.price_out}
    endpoint = Endpoint(args.endpoint, args.model, args.key_variable, **prices)
    return LLMJudge(endpoint, cache), f"{args.model} at {args.endpoint}"


def _read_rules(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise PrmError(f"{path}: no such file")
    try:
        rules = parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: no JSON: {error}") from None
    if not isinstance(rules, dict) or not all(isinstance(rule, str) for rule in rules.values()):
        raise DataError(f"{path}: expected an object of user ids with a rule each, as text")
    found = {}
    for user, rule in rules.items():
        try:
            found[user] = named_rule(rule)
        except PrmError as error:
            raise DataError(f"{path}, user {user!r}: {error}") from None
    return found


def _result(duels: Sequence[Duel], judged: JudgedDuels, rate: WinRate, cut: Sequence[str]) -> dict[str, Any]:
    """JSON-ready; an interval without an end is null."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    words = {1.0: "wins", 0.5: "ties", 0.0: "losses"}
    for duel, score in zip(duels, judged.scores.tolist(), strict=True):
        counts[duel.user_id][words.get(score, "unjudged")] += 1
    people = sum(n.total() > n["unjudged"] for n in counts.values())
    found = {"duels": len(duels), "people": people, "win_rate": asdict(rate), "notes": [*judged.notes(), *cut]}
    found["by_person"] = {user: {word: n[word] for word in (*words.values(), "unjudged")} for user, n in counts.items()}
    ready: dict[str, Any] = plain(found)
    return ready


def _duel_rows(duels: Sequence[Duel], judged: JudgedDuels) -> list[dict[str, Any]]:
    """Each duel with the first answer's score, null where it was not judged, and why not."""
    rows = []
    for i, (duel, score) in enumerate(zip(duels, judged.scores.tolist(), strict=True)):
        row = Asked(duel.prompt, duel.user_id).to_row()
        row |= {"first": duel.first, "second": duel.second, "score": plain(score)}
        rows.append(row | ({"unjudged": judged.unjudged[i]} if i in judged.unjudged else {}))
    return rows


def _counts(rate: WinRate, people: int) -> str:
    counts = f"{rate.wins} wins, {rate.ties} ties, {rate.losses} losses, {rate.unjudged} not judged"
    if people == 1:
        return f"{counts}, of 1 person, from whom nothing follows of others: there are no intervals"
    few = "; too few people for them to mean much" if people < FEW_PEOPLE else ""
    how = "95% intervals by bootstrap over people; of the rate over people, ties as halves, over shared prompts, too"
    return f"{counts}, of {people} people; {how}{few}"
