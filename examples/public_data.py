"""Make the folders below data/ that configs read, out of public data. Run it: python examples/public_data.py NAME

The measurements in docs/results.md were made on parts of the same data that were set aside before: the posts, the
people and the pairs of answers that this script picks are others, by the rules below.
"""

import argparse
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from prm import Comparison, FeedbackConfig, read_feedback
from prm.data.baselines import count_words
from prm.io.disk import make_folder
from prm.io.tables import read_table, write_bytes, write_jsonl

POSTS, PEOPLE, EACH = 1_500, 18, 5
STYLED = (
    "alpaca-7b",
    "gpt-3.5-turbo-1106",
    "gpt4_0613",
    "gpt4_1106_preview",
    "claude-2.1",
    "Mixtral-8x7B-Instruct-v0.1",
)
OTHERS = ("text_davinci_003", "pythia-12b-mix-sft", "llama-2-7b-chat-hf", "vicuna-7b")
SYSTEMS = [f"{system}{style}" for system in STYLED for style in ("", "_concise", "_verbose")] + [*OTHERS]
GRADES_APART, MOST_UNEQUAL = 3.0, 1.3  # of the two answers that an elementary and an expert reader choose between


def tldr() -> None:
    """The first 1,500 Reddit posts of OpenAI's comparisons that have the author's summary and a model's."""
    write_jsonl("data/tldr/pairs.jsonl", islice(posts(), POSTS))


def posts() -> Iterator[dict[str, Any]]:
    """One row for each post."""
    seen = set()
    for row in read_table("openai/summarize_from_feedback", "train", "comparisons"):
        info, by_policy = row.values["info"], {s["policy"]: s["text"].strip() for s in row.values["summaries"]}
        models = [policy for policy in by_policy if policy.startswith("sup")]
        if info["id"] in seen or info.get("post") is None or "ref" not in by_policy or not models:
            continue
        seen.add(info["id"])
        prompt = f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {info['post']}\n\nTL;DR:"
        texts = {"response_model": by_policy[models[0]], "response_reference": by_policy["ref"]}
        yield {"id": len(seen), "prompt": prompt, **texts}


def prism_mini() -> None:
    """First turns of PRISM: the first 18 people with five comparisons of answers of at most 1,500 characters."""
    by_user = defaultdict(list)
    for c in read_feedback(FeedbackConfig(path="HannahRoseKirk/prism-alignment", source="prism")).comparisons:
        if len(c.prompt) == 1 and max(len(c.chosen), len(c.rejected)) <= 1_500:
            by_user[c.user_id].append(c)
    chosen = [c for comparisons in by_user.values() if len(comparisons) >= EACH for c in comparisons[:EACH]]
    write_jsonl("data/prism_mini/comparisons.jsonl", (pick(c, i) for i, c in enumerate(chosen[: PEOPLE * EACH])))


def pick(c: Comparison, number: int) -> dict[str, Any]:
    """The comparison as a pick of two; every other one has the chosen answer second."""
    sides = (c.chosen, c.rejected) if number % 2 == 0 else (c.rejected, c.chosen)
    row = {"user_id": c.user_id, "context": f"[user]: {c.prompt[-1].content}"}
    return row | {"response_a": sides[0], "response_b": sides[1], "choice": "a" if number % 2 == 0 else "b"}


def alpacaeval_styles() -> None:
    """AlpacaEval's answers, and pairs of them that people of four styles would choose between."""
    answers: dict[str, dict[str, Any]] = {}
    for system in SYSTEMS:
        for row in read_table(f"data/alpaca_eval/results/{system}/model_outputs.json"):
            about = {"prompt_id": len(answers), "dataset": row.values["dataset"], "prompt": row.values["instruction"]}
            answers.setdefault(row.values["instruction"], about | {"responses": {}})
            if row.values["output"].strip():
                answers[row.values["instruction"]]["responses"][system] = row.values["output"]
    lines = "".join(f"{json.dumps(row)}\n" for row in answers.values())
    make_folder(Path("data/alpacaeval_styles"))
    write_bytes(Path("data/alpacaeval_styles/responses.jsonl.gz"), gzip.compress(lines.encode()))
    write_jsonl("data/alpacaeval_styles/pairs.jsonl", styled_pairs(answers.values()))


def styled_pairs(instructions: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Concise against verbose by each system that was asked for both; and one pair as long and unlike in grade."""
    for instruction in instructions:
        number, responses = instruction["prompt_id"], instruction["responses"]
        for place, system in enumerate(STYLED):
            pair = [f"{system}_concise", f"{system}_verbose"]
            if set(pair) <= set(responses) and responses[pair[0]] != responses[pair[1]]:
                flipped = (number + place) % 2
                a, b = pair[::-1] if flipped else pair
                choices = {"P2A_concise": "ba"[not flipped], "P2B_informative": "ab"[not flipped]}
                yield {"prompt_id": number, "axis": "P2", "model_a": a, "model_b": b, **choices}
        words, grades = ({name: f(text) for name, text in responses.items()} for f in (count_words, grade))
        apart = {
            pair: abs(grades[pair[0]] - grades[pair[1]])
            for pair in combinations(responses, 2)
            if max(words[name] for name in pair) <= MOST_UNEQUAL * min(words[name] for name in pair)
        }
        if apart and max(apart.values()) >= GRADES_APART:
            pair = list(max(apart, key=apart.__getitem__))
            a, b = pair[::-1] if number % 2 else pair
            easy = grades[a] < grades[b]
            choices = {"P1A_elementary": "ba"[easy], "P1B_expert": "ab"[easy]}
            yield {"prompt_id": number, "axis": "P1", "model_a": a, "model_b": b, **choices}


def grade(text: str) -> float:
    """The Flesch-Kincaid grade, with a syllable for every run of vowels; a line's end ends a sentence, too."""
    words = re.findall(r"[A-Za-z]+", text)
    sentences = sum(bool(re.search(r"[A-Za-z]", sentence)) for sentence in re.split(r"[.!?\n]+", text))
    syllables = sum(max(1, len(re.findall(r"[aeiouy]+", word.lower()))) for word in words)
    return 0.39 * len(words) / sentences + 11.8 * syllables / len(words) - 15.59 if words else 0.0


def styles() -> None:
    """The two logs of compare-styles.yaml, out of alpacaeval_styles: short answers, and the gold model's."""
    log = read_feedback(FeedbackConfig(path="data/alpacaeval_styles", source="alpacaeval_styles")).comparisons
    longest = {id(c): max(count_words(c.chosen), count_words(c.rejected)) for c in log}
    short = [c for c in log if longest[id(c)] <= 80 and count_words(c.prompt) <= 60]
    prompts = sorted({c.prompt for c in short})
    held = set(prompts[::3])
    parts = [{"split": "test" if c.prompt in held else "train", "style": c.user_id.split("_")[1]} for c in short]
    write_jsonl("data/styles/short.jsonl", (replace(c, metadata=c.metadata | part) for c, part in zip(short, parts)))
    others = [c for c in log if c.prompt not in set(prompts) - held and longest[id(c)] <= 250]
    write_jsonl("data/styles/gold.jsonl", others)


MAKERS: dict[str, Callable[[], None]] = {make.__name__: make for make in (tldr, prism_mini, alpacaeval_styles, styles)}


def build_parser() -> argparse.ArgumentParser:
    """The parser of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(MAKERS), help="the folder to make below data/")
    return parser


if __name__ == "__main__":
    name = build_parser().parse_args().name
    MAKERS[name]()
    made = sorted(path for path in Path("data", name).iterdir())
    print(*(f"wrote {path}" for path in made), sep="\n")
