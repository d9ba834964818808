"""`examples/public_data.py`: folders made of small files in the schema of the originals can be read."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prm.data.comparison import Comparison, Message
from prm.data.sources.collector import Feedback
from prm.io.rows import Row
from tests.conftest import read_log
from tests.paths import ROOT


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("public_data", ROOT / "examples/public_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def openai_row(post: str | None, **by_policy: str) -> Row:
    info = {"id": f"t3_{post}", "post": post, "title": "TIFU", "subreddit": "tifu", "site": None, "article": None}
    return Row("x", {"info": info, "summaries": [{"text": f" {t}", "policy": p} for p, t in by_policy.items()]})


def test_posts_have_the_authors_summary_and_a_models(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        openai_row("I fell.", sup1="he fell and fell", sup2="x"),  # no summary by the author
        openai_row("I fell.", sup4_6b_t0="fell", ref="I fell down"),
        openai_row("I fell.", ref="I fell down", sup1="again"),  # the same post
        openai_row(None, ref="news", sup1="an article"),
        openai_row("I ran.", ref="ran", ppo="a policy that nobody wants"),
        openai_row("I sat.", ref="sat", sup1="I sat down"),
    ]

    def read_table(path: str, part: str, table: str) -> Iterator[Row]:
        assert (path, part, table) == ("openai/summarize_from_feedback", "train", "comparisons")
        return iter(rows)

    monkeypatch.setattr(script, "read_table", read_table)
    script.tldr()
    found = read_log("data/tldr", "tldr_length")
    prompt = "SUBREDDIT: r/tifu\n\nTITLE: TIFU\n\nPOST: {}\n\nTL;DR:"
    assert {(c.prompt, *sorted((c.chosen, c.rejected), key=len)) for c in found} == {
        (prompt.format("I fell."), "fell", "I fell down"),
        (prompt.format("I sat."), "sat", "I sat down"),
    }
    assert len(found) == 20
    assert (
        read_log("data/tldr", "tldr_length", tldr={"prompt": "title"})[0].prompt == prompt.split("POST")[0] + "TL;DR:"
    )


def test_grades_are_those_of_the_formula(script: ModuleType) -> None:
    """Flesch-Kincaid: 0.39 words / sentences + 11.8 syllables / words - 15.59."""
    assert script.grade("The cat sat\n\n- He ran!") == pytest.approx(0.39 * 5 / 2 + 11.8 * 5 / 5 - 15.59)
    assert script.grade("Considerable deliberation") == pytest.approx(0.39 * 2 + 11.8 * (5 + 5) / 2 - 15.59)


def test_four_styles_choose_between_answers_of_alpacaeval(script: ModuleType) -> None:
    """Concise and verbose by what was asked for; elementary and expert by the grade of answers of similar length."""
    for place, system in enumerate(script.SYSTEMS):
        answer = "Go on. " * (30 if system.endswith("_verbose") else 7) + f"{place} ."
        outputs = [answer, " " if system == "vicuna-7b" else answer]
        if system == "claude-2.1":
            outputs[0] = (
                "Considerable deliberation anticipates irreconcilable interdisciplinary considerations " * 2 + "so ."
            )
        rows = [{"dataset": "d", "instruction": f"How {i}?", "output": text} for i, text in enumerate(outputs)]
        folder = Path(f"data/alpaca_eval/results/{system}")
        folder.mkdir(parents=True)
        (folder / "model_outputs.json").write_text(json.dumps(rows))
    script.alpacaeval_styles()
    found = read_log("data/alpacaeval_styles", "alpacaeval_styles")
    concise, informative = ([c for c in found if c.user_id.endswith(name)] for name in ("concise", "informative"))
    assert len(concise) == len(informative) == 2 * len(script.STYLED)
    assert all(len(c.chosen) < len(c.rejected) for c in concise)
    assert all(len(c.chosen) > len(c.rejected) for c in informative)
    (easy,) = (c for c in found if c.user_id == "P1A_elementary")
    (hard,) = (c for c in found if c.user_id == "P1B_expert")
    assert (easy.chosen, easy.rejected) == (hard.rejected, hard.chosen)
    assert easy.rejected.startswith("Considerable deliberation")
    pairs = [json.loads(line) for line in Path("data/alpacaeval_styles/pairs.jsonl").read_text().splitlines()]
    assert {row["P2A_concise"] for row in pairs if row["axis"] == "P2"} == {"a", "b"}
    script.styles()
    short = read_log("data/styles/short.jsonl")
    assert {c.metadata["split"] for c in short} == {"train", "test"}
    assert {c.prompt for c in read_log("data/styles/gold.jsonl")} == {
        c.prompt for c in short if c.metadata["split"] == "test"
    }


def test_first_turns_of_prism_become_picks(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(user: str, i: int, **more: Any) -> Comparison:
        return Comparison(
            **{"user_id": user, "prompt": (Message("user", f"{i}?"),), "chosen": "yes", "rejected": "no"} | more
        )

    log = [talk("a", i) for i in range(6)] + [talk("b", i) for i in range(4)] + [talk("b", 9, chosen="x" * 1_501)]
    log += [
        talk("c", i, prompt=(Message("user", "?"), Message("assistant", "!"), Message("user", "?"))) for i in range(6)
    ]
    feedback = Feedback(log, *(None,) * 5)  # type: ignore[arg-type]
    monkeypatch.setattr(script, "read_feedback", lambda config: feedback)
    script.prism_mini()
    columns = {"prompt": "context", "responses": ["response_a", "response_b"], "chosen": "choice"}
    found = read_log("data/prism_mini/comparisons.jsonl", "picks", columns=columns)
    assert [(c.user_id, c.prompt, c.chosen, c.rejected) for c in found] == [
        ("a", f"[user]: {i}?", "yes", "no") for i in range(5)
    ]
    assert [c.chosen_first for c in found] == [True, False, True, False, True]
