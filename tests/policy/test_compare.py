"""`policy compare` from end to end on a tiny model, and its figures by hand."""

import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import policy.compare.answering
import policy.compare.training
from policy.cli import main
from policy.compare.answering import Task, _made_of, best_of, sample_arm, with_surprise
from policy.compare.command import _new_task
from policy.compare.config import ArmSpec, CompareConfig, JudgeSpec
from policy.compare.judging import by_reward, gold_rewards, mixed_rules
from policy.compare.measure import Answered, AnswerRow, DrawnRow, Result, measure
from policy.compare.questions import FEW, MANY, choose_cases, sides
from policy.compare.report_text import advice, panels
from policy.compare.training import plan_jobs
from prm.checkpoint.checkpoint import digest, load_policy, save
from prm.checkpoint.config_file import TrainedBy
from prm.data.comparison import Comparison, Message, PromptLike
from prm.data.past_comparisons import past_by_user
from prm.errors import PrmError
from prm.io.tables import read_rows, write_jsonl
from prm.io.yaml_settings import read_config
from prm.metrics import Estimate
from prm.report.policy_comparison import arms_picture
from prm.scoring.scorer import Scorer
from prm.training.prepare_log import DataSplit
from rerank.ranking.candidates import Candidates, LocalGenerator
from rerank.ranking.open_generator import open_named
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.conftest import WORDS, Clock
from tests.policy.ppo.toy import save_toy
from tests.policy.test_cli import refused
from tests.prm.checkpoint.test_formats import DATED, FIRST, LATER, with_template

TINY: dict[str, Any] = {
    "users": {"num_virtual_tokens": 2},
    "optim": {"epochs": 1.0, "batch_size": 8, "micro_batch_size": 8, "eval_steps": 2, "warmup_steps": 0},
}
VANILLA = TINY | {"users": {"kind": "uniform", "num_virtual_tokens": 0}}
ON_SFT = {"name": "{sft}", "dtype": "float32", "max_length": 120}


def log_of(n: int) -> list[Comparison]:
    """Three people of whom two like it long, one short; each says so."""
    found = []
    for i in range(n):
        long, short = " ".join(WORDS[i % 5 : i % 5 + 6]), " ".join(WORDS[i % 9 + 8 : i % 9 + 10])
        for user, taste in (("anna", "longer"), ("ben", "longer"), ("carl", "shorter")):
            pair = (long, short) if taste == "longer" else (short, long)
            about: dict[str, Any] = {"metadata": {"prefers": taste}, "user_text": f"i like it {taste}"}
            found.append(Comparison(user, f"what of {WORDS[i % 16]} {i}?", *pair, **about))
    return found


def tree(backbone: str, folder: Path) -> dict[str, Any]:
    """Every kind of arm, in seconds."""
    write_jsonl(folder / "log.jsonl", log_of(20))
    own = {"name": backbone, "dtype": "float32", "max_length": 120}
    search = {"folds": 2, "l2": [1.0], "user_l2": [1.0], "layers": [2], "poolings": ["last"]}
    ppo = {"max_steps": 1, "rollout_batch_size": 8, "max_new_tokens": 5, "num_scale_samples": 4}
    online = {"max_new_tokens": 5, "num_eval_samples": 4, "backbone": ON_SFT, **TINY}
    few = {"backbone": ON_SFT, "reward": "{reward}", "ppo": ppo, **TINY}
    return {
        "output_dir": str(folder / "out"),
        "max_users": 3,
        "max_prompts": 3,
        "max_new_tokens": 5,
        "batch_size": 5,
        "group_by": "prefers",
        "judge": {"rule_field": "prefers"},
        "data": {
            "path": str(folder / "log.jsonl"),
            "test_fraction": 0.3,
            "validation_fraction": 0.3,
            "on_artefact": "warn",
        },
        "runs": {
            "sft": {"command": "sft", "settings": {"backbone": own, "optim": TINY["optim"]}},
            "reward": {"command": "train", "settings": {"backbone": ON_SFT, "search": search}},
            "dpo": {"command": "dpo", "settings": {"backbone": ON_SFT, **VANILLA}},
            "p-dpo": {"command": "dpo", "settings": {"backbone": ON_SFT, **TINY}},
            "ppo": {"command": "ppo", "settings": few | {"reward": "{reward}/uniform"} | VANILLA},
            "p-ppo": {"command": "ppo", "settings": few},
            "rloo": {"command": "online", "settings": online | {"reward": "{reward}"}},
        },
        "arms": {
            "SFT": {"run": "{sft}"},
            "SFT, prompted": {"run": "{sft}", "prompted": {"longer": "Be long.", "shorter": "Be short."}},
            "SFT, past": {"run": "{sft}", "max_history": 2},
            "chosen": {"chosen": True},
            "DPO": {"run": "{dpo}"},
            "P-DPO": {"run": "{p-dpo}"},
            "P-DPO, generic": {"run": "{p-dpo}", "as_generic_user": True},
            "PPO, uniform": {"run": "{ppo}"},
            "PPO": {"run": "{p-ppo}"},
            "RLOO": {"run": "{rloo}"},
            "best of": {"run": "{sft}", "best_of": [1, 2, 4], "reward": "{reward}"},
        },
    }


def write(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def done(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(the folder, its config): every arm trained, asked and judged once."""
    folder = tmp_path_factory.mktemp("compare")
    path = write(folder, tree(backbone_of("llama"), folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        main(["compare", path])
    return folder / "out", path


def test_every_arm_is_trained_asked_and_judged(done: tuple[Path, str]) -> None:
    """The same questions for all; the rule's figures by hand from the files; what is kept to make it again."""
    out, _ = done
    found = json.loads((out / "metrics.json").read_text())
    files = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in (out / "answers").iterdir()
    }
    assert set(files) == set(found["arms"])
    assert len({json.dumps([[r["user_id"], r["prompt"]] for r in rows]) for rows in files.values()}) == 1
    held = {row["prompt"] for _, row in read_rows(out / "runs/dpo/test.jsonl")}
    assert {row["prompt"] for row in files["SFT"]} <= held
    words = np.array([len(row["response"].split()) for row in files["P-DPO"]], float)
    sign = np.array([-1.0 if row["user_id"] == "carl" else 1.0 for row in files["P-DPO"]])
    assert found["arms"]["P-DPO"]["all"]["gold"]["value"] == pytest.approx((sign * words).mean())  # as many each
    length = found["arms"]["P-DPO"]["groups"]["longer"]["words"]["value"]
    assert length == pytest.approx(words[sign > 0].mean())
    own = words[[row["user_id"] == "carl" for row in files["P-DPO"]]]
    assert found["arms"]["P-DPO"]["lengths"]["carl"] == pytest.approx([own.mean(), own.std(ddof=1) / len(own) ** 0.5])
    assert list(found["arms"]["P-DPO"]["lengths"]) == ["anna", "ben", "carl"]  # the smaller group last
    assert found["groups"] == {"longer": 2, "shorter": 1}
    assert found["arms"]["chosen"]["groups"]["longer"]["wins"]["value"] == 1.0  # six words against five tokens
    assert found["arms"]["best of 4"]["all"]["kl"]["value"] == pytest.approx(np.log(4) - 3 / 4)
    assert found["arms"]["SFT"]["all"]["kl"]["value"] == 0.0
    assert found["arms"]["chosen"]["all"]["kl"] is None
    assert all(arm["all"]["surprise"]["value"] > 0.0 for arm in found["arms"].values())
    a, b = found["win_rates"]["DPO"]["P-DPO"]["value"], found["win_rates"]["P-DPO"]["DPO"]["value"]
    assert a + b == pytest.approx(1.0)
    own = 100 * found["win_rates"]["P-DPO"]["P-DPO, generic"]["value"]
    (said,) = [line for line in found["advice"] if "generic user" in line]
    assert said.startswith("P-DPO ")
    assert f" {own:.1f} [" in said
    cost = found["arms"]["PPO"]["cost"]
    spent = json.loads((out / "seconds.json").read_text())
    assert cost["training"] == spent["p-ppo"]
    assert cost["needed"] == pytest.approx(spent["p-ppo"] + spent["reward"] + spent["sft"])
    best = found["arms"]["best of 4"]
    assert best["cost"]["training"] == 0.0
    assert 4 < best["cost"]["tokens"] <= 4 * 5  # an answer that was cut has no end token
    assert best["cut"] == pytest.approx(np.mean([not row["ended"] for row in files["best of 4"]]))
    assert (found["seed"], found["config"]["max_users"]) == (0, 3)
    assert files["SFT, past"] != files["SFT"]
    assert found["arms"]["SFT, past"]["cost"]["training"] == 0.0
    assert "torch" in found["versions"]


def test_the_share_of_headroom_leads(done: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """By hand from the stored pools: the rule is the oracle; page, tables, JSON and terminal begin with it."""
    out, path = done
    found = json.loads((out / "metrics.json").read_text())
    assert next(iter(found)) == "headroom_share"
    assert list(found["headroom_share"]) == ["best of 2", "best of 4"]
    rows = [json.loads(line) for line in (out / "answers/best of 4.jsonl").read_text().splitlines()]
    parts: dict[str, list[float]] = {"personal": [], "generic": [], "uniform": [], "gold": []}
    for row in rows:
        pool = row["pool"]
        assert len(pool) == 4
        assert (
            row["response"]
            == max(pool, key=lambda c: c["personal"] if c["personal"] is not None else -np.inf)["response"]
        )
        sign = -1.0 if row["user_id"] == "carl" else 1.0
        gold = np.array([sign * len(c["response"].split()) for c in pool])
        for key, values in parts.items():
            own = [c[key] if c[key] is not None else -np.inf for c in pool] if key != "gold" else gold.tolist()
            best = np.array(own) == max(own)
            values.append(gold[best].mean() - gold.mean())
    share = found["headroom_share"]["best of 4"]
    assert share["headroom"]["value"] == pytest.approx(np.mean(parts["gold"]))
    for name, key in (("personal", "personal"), ("generic user", "generic"), ("uniform", "uniform")):
        assert share["share"][name]["value"] == pytest.approx(np.mean(parts[key]) / np.mean(parts["gold"]))
    assert share["share"]["oracle"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    main(["compare", path])
    page = (out / "index.html").read_text()
    for text in (capsys.readouterr().out, (out / "compare.md").read_text(), page.partition("</h1>")[2]):
        assert 0 < text.index("Share of the oracle headroom captured") < text.lower().index("when to choose which")


def test_a_users_past_makes_a_pool_of_their_own(done: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Best of N after each user's past comparisons: prompts that differ by user, none without an answer."""
    out, path = done
    base, past = Sampler.from_pretrained(str(out / "runs/sft")), past_by_user(log_of(4))
    cases = tuple(Comparison(user, "what of a fox 30?", "a", "b") for user in ("anna", "ben", "carl"))
    task = Task(read_config(CompareConfig, path), cases, dict.fromkeys(("anna", "ben", "carl"), "x"), base, past)
    monkeypatch.setattr("policy.compare.answering.texts_of_run", lambda _: {})
    asked: list[str] = []
    draw = Candidates.generate
    monkeypatch.setattr(
        Candidates, "generate", lambda self, prompt, *rest: asked.append(prompt) or draw(self, prompt, *rest)
    )
    spec = ArmSpec(run="{sft}", reward="{reward}", best_of=[2])
    for most, pools in ((0, 1), (1, 3)):
        asked.clear()
        (rows,) = best_of("x", replace(spec, max_history=most), task)
        assert (len(asked), len(rows)) == (pools, 3)
    assert len(set(asked)) == 2  # anna and ben chose the same, carl the other
    assert all("They preferred" in prompt for prompt in asked)


def test_kl_is_that_of_the_drawn_tokens(done: tuple[Path, str]) -> None:
    """log pi of the ids as they were drawn, by a plain pass; cut responses included."""
    out, path = done
    config = read_config(CompareConfig, path)
    run = str(out / "runs/p-dpo")
    sampler, base = Sampler.from_pretrained(run), Sampler.from_pretrained(str(out / "runs/sft"))
    case = Comparison("carl", "what of a fox 3?", "a", "b", metadata={"prefers": "shorter"})
    task = Task(config, (case,), {"carl": "shorter"}, base)
    spec = ArmSpec("{p-dpo}", prompted={"shorter": "Be short."})
    (row,) = sample_arm("x", spec, task)
    how = task.sampling("x")
    asked = sampler.encode_prompt("Be short.\n\nwhat of a fox 3?", "carl", "i like it shorter")  # as in its log
    (ids,) = sampler.generate([asked], 1, how)
    assert len(ids) == row["tokens"]
    given = base.encode_prompt(case.prompt)
    for model, start, stored in ((sampler, asked, row["logp"]), (base, given, row["base_logp"])):
        with torch.no_grad():
            logits = model.policy(torch.tensor([[*start, *ids]]), torch.ones(1, len(start) + len(ids))).logits[0]
        logps = logits.log_softmax(-1)[len(start) - 1 : -1]
        assert stored == pytest.approx(float(logps[range(len(ids)), ids].sum()), abs=1e-3)


def test_surprise_is_what_the_base_makes_of_a_word(done: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the words alone, by a plain pass over them: an end token after a single word would halve what it says."""
    out, path = done
    base = Sampler.from_pretrained(str(out / "runs/sft"), dtype=torch.float32)
    cases = tuple(
        Comparison("carl", f"what of a fox {i}?", "a", "b", metadata={"prefers": "shorter"}) for i in range(2)
    )
    task = Task(read_config(CompareConfig, path), cases, {"carl": "shorter"}, base)

    def of(prompt: PromptLike, ids: list[int]) -> float:
        asked = base.encode_prompt(prompt)
        with torch.no_grad():
            logits = base.policy(torch.tensor([[*asked, *ids]]), torch.ones(1, len(asked) + len(ids))).logits[0]
        return -float(logits.log_softmax(-1)[len(asked) - 1 : -1][range(len(ids)), ids].mean())

    ids = base.tokenizer("a quick red fox", add_special_tokens=False)["input_ids"]
    full, empty = with_surprise([{"response": "a quick red fox"}, {"response": " "}], task)
    assert full["surprise"] == pytest.approx(of(cases[0].prompt, ids), abs=1e-3)
    assert empty["surprise"] is None
    # of what was sampled: one ended after two words, one at once, one was cut
    drawn = [[*ids[:2], base.end_ids[0]], [base.end_ids[0]], ids]
    monkeypatch.setattr(base, "generate", lambda *args: drawn)
    task = replace(task, cases=(*cases, cases[0]))
    found = list(sample_arm("SFT", task.config.arms["SFT"], task))
    assert found[0]["surprise"] == pytest.approx(of(cases[0].prompt, ids[:2]), abs=1e-3)
    assert found[1]["surprise"] is None
    assert found[2]["surprise"] == pytest.approx(full["surprise"], abs=1e-3)


def test_an_unknown_user_asks_with_row_0_and_no_text(done: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, path = done
    base = Sampler.from_pretrained(str(out / "runs/sft"))
    case = Comparison("carl", "what of a fox 3?", "a", "b", metadata={"prefers": "shorter"}, user_text="i like it so")
    task = Task(read_config(CompareConfig, path), (case,), {"carl": "shorter"}, base)
    asked: list[list[int]] = []
    draw = Sampler.generate
    monkeypatch.setattr(Sampler, "generate", lambda self, ids, *rest: asked.extend(ids) or draw(self, ids, *rest))
    for generic in (True, False):
        list(sample_arm("x", ArmSpec("{p-dpo}", as_generic_user=generic), task))
    v = base.policy.vocab_size
    unknown, carl = asked
    assert (unknown[:2], carl[:2]) == ([v, v + 1], [v + 6, v + 7])
    assert unknown[2:] == base.encode_prompt(case.prompt)


def test_the_page_stands_alone(done: tuple[Path, str]) -> None:
    out, _ = done
    page = (out / "index.html").read_text()
    assert "When to choose which" in page
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "Responses side by side" in page
    assert "Length of responses, by user" in page
    assert (out / "words.png").stat().st_size > 5000


def test_what_is_there_is_kept_and_reported(
    done: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call trains and draws nothing, and says the same; a lost file of answers is drawn again, and alike."""
    out, path = done
    before = json.loads((out / "metrics.json").read_text())
    kept = (out / "answers/PPO.jsonl").read_text()
    (out / "answers/PPO.jsonl").unlink()
    asked: list[str] = []

    def counted(name: str, *arguments: Any) -> Any:
        asked.append(name)
        return sample_arm(name, *arguments)

    monkeypatch.setattr(policy.compare.answering, "sample_arm", counted)
    monkeypatch.setattr(policy.compare.training, "_with_seconds", lambda *_: pytest.fail("trained"))
    main(["compare", path])
    assert asked == ["PPO"]
    said = capsys.readouterr().out
    assert "0 of 7 " in said
    assert "12 of 13 " in said
    again, first = (
        [json.loads(line) for line in text.splitlines()] for text in ((out / "answers/PPO.jsonl").read_text(), kept)
    )
    assert [row["response"] for row in again] == [row["response"] for row in first]
    after = json.loads((out / "metrics.json").read_text())
    assert after["arms"]["RLOO"] == before["arms"]["RLOO"]


def test_it_goes_on_where_it_was_stopped(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the second run: the first is kept, and its time; the rest follows."""
    settings = tree(tiny, tmp_path)
    settings["runs"] = {name: settings["runs"][name] for name in ("sft", "dpo")}
    settings["arms"] = {name: settings["arms"][name] for name in ("SFT", "chosen", "DPO")}
    path = write(tmp_path, settings)
    seconds = tmp_path / "out/seconds.json"

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("policy.dpo.train_dpo", stopped)
        with pytest.raises(SystemExit):
            main(["compare", path])
    assert "same command" in capsys.readouterr().err
    assert (tmp_path / "out/runs/sft/run.json").is_file()
    spent = json.loads(seconds.read_text())
    assert set(spent) == {"sft", "dpo"}
    jobs = {job.name: job.state for job in plan_jobs(read_config(CompareConfig, path))}
    assert jobs == {"sft": "there", "dpo": "missing"}
    main(["compare", path, "--only", "dpo", "--json"])
    runs = {name: {"folder": str(tmp_path / "out/runs" / name)} for name in ("sft", "dpo")}
    printed = json.loads(capsys.readouterr().out)
    assert {name: {"folder": run["folder"]} for name, run in printed["runs"].items()} == runs
    assert printed["runs"]["dpo"]["digest"] == digest(tmp_path / "out/runs/dpo")
    assert not (tmp_path / "out/index.html").exists()
    main(["compare", path, "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out/metrics.json").read_text())
    assert (tmp_path / "out/index.html").is_file()
    assert json.loads(seconds.read_text())["sft"] == spent["sft"]


def test_a_gold_model_of_the_held_out_half_judges(tiny: str, tmp_path: Path) -> None:
    """It learns from the held-out rows alone; groups are made of who sides with whom."""
    settings = tree(tiny, tmp_path)
    gold = {
        "command": "train",
        "settings": settings["runs"]["reward"]["settings"]
        | {
            "data": {"path": "{reward}/test.jsonl", "test_fraction": 0.0, "holdout_by": "pair"},
            "backbone": {"name": tiny},
        },
    }
    settings["runs"] = {name: settings["runs"][name] for name in ("sft", "reward")} | {"gold": gold}
    settings["arms"] = {name: settings["arms"][name] for name in ("SFT", "chosen", "best of")}
    settings |= {"judge": {"gold": "{gold}"}, "group_by": ""}
    main(["compare", write(tmp_path, settings)])
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert found["groups"] == {MANY: 2, FEW: 1}
    assert (tmp_path / "out/compare.md").read_text().splitlines()[0].endswith(f"judged by {tmp_path / 'out/runs/gold'}")
    held = json.loads((tmp_path / "out/runs/gold/run.json").read_text())["data"]["train_comparisons"]
    assert held == len(list(read_rows(tmp_path / "out/runs/reward/test.jsonl")))


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        (
            "base",
            "SFTT",
            "'base' must name an arm that answers by itself, got 'SFTT'; there are 'SFT', 'SFT, prompted', ",
        ),
        ("arms", {"SFT": {"run": "{sft}"}, "x": {"best_of": 4}}, "'arms.x.best_of'"),
        ("arms", {"SFT": ["{sft}"], "x": {"chosen": True}}, "'arms.SFT'"),
        ("judge", {}, "'judge' needs"),
        ("judge", {"gold": "nowhere"}, "'judge.gold': there is no run nowhere"),
        ("judge", {"gold": "{god}"}, "names the run 'god'"),
        (
            "judge",
            {"rule_field": "taste"},
            "'judge.rule_field': no user of the held-out part (18 comparisons) has 'taste'",
        ),
        ("arms", {"SFT": {"run": "{sft}"}}, "fewer than two"),
        ("arms", {"SFT": {"run": "{sft}"}, "x": {}}, "'arms.x' needs either"),
        ("arms", {"SFT": {"run": "{sft}"}, "x": {"run": "{sft}", "best_of": [2]}}, "'arms.x' needs both"),
        ("arms", {"SFT": {"run": "{sft}"}, "x": {"run": "{sft}", "best_of": [2], "reward": "no"}}, "no run no;"),
        ("arms", {"SFT": {"run": "{sft}"}, "x": {"run": "{sft}", "prompted": {"longer": "a"}}}, "group 'shorter'"),
        (
            "arms",
            {"SFT": {"run": "{sft}"}, "x": {"chosen": True, "as_generic_user": True}},
            "'arms.x' is 'as_generic_user'",
        ),
        ("arms", {"SFT": {"run": "{sft}", "as_generic_user": True}, "chosen": {"chosen": True}}, "'base' must name"),
        ("runs", {"sft": {"command": "sftt"}}, "'runs.sft.command'"),
        ("runs", {"sft": {"command": "sft", "settings": {"optim": {"epoch": 1}}}}, "'runs.sft': "),
        ("runs", {"sft": {"command": "sft", "configs": ["no.yaml"]}}, "no.yaml: no such file"),
        (
            "arms",
            {"SFT": {"run": "{sft}"}, "x": {"run": "{sft}", "best_of": [2], "reward": "{sft}"}},
            "gives no reward",
        ),
        ("group_by", "country", "'group_by': no comparison has the metadata field 'country'"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    done: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, fault: str
) -> None:
    """Refused before anything is trained, on the folder of the finished comparison."""
    _, path = done
    settings = yaml.safe_load(Path(path).read_text())
    if key == "arms":
        settings["runs"] = {"sft": settings["runs"]["sft"]}
    if key == "runs":
        settings["arms"] = {"SFT": {"run": "{sft}"}, "chosen": {"chosen": True}}
    assert fault in refused(capsys, "compare", write(tmp_path, settings | {key: value}))


@pytest.mark.parametrize(
    ("arms", "gold"),
    [
        ({"x": {"run": "{sft}", "best_of": [2], "reward": "{reward}"}}, "{reward}"),
        ({"x": {"run": "{sft}", "best_of": [2], "reward": "{reward}/uniform"}}, "{reward}"),
        ({"x": {"run": "{p-ppo}"}}, "{reward}/uniform"),
        ({"x": {"run": "{rloo}"}}, "OUT/runs/../runs/reward"),
        ({"x": {"run": "{p-ppo}"}}, "COPY"),
        ({"x": {"run": "{p-dpo}"}}, "{p-dpo}"),
    ],
)
def test_a_judge_that_an_arm_learnt_from_or_picks_by_is_refused(
    done: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], arms: dict[str, Any], gold: str
) -> None:
    out, path = done
    if gold == "COPY":
        shutil.copytree(out / "runs/reward", tmp_path / "copy")
        gold = str(tmp_path / "copy")
    settings = yaml.safe_load(Path(path).read_text())
    changes = {"arms": {"SFT": {"run": "{sft}"}, **arms}, "judge": {"gold": gold.replace("OUT", str(out))}}
    said = refused(capsys, "compare", write(tmp_path, settings | changes))
    assert "'judge.gold'" in said
    assert "'x'" in said


@pytest.mark.parametrize("change", [{"group_by": "country"}, {"judge": {"rule_field": "taste"}}])
def test_fields_are_looked_for_before_anything_is_trained(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    refused(capsys, "compare", write(tmp_path, tree(tiny, tmp_path) | change))
    assert not (tmp_path / "out").exists()


def test_rules_that_count_unlike_things_are_reported() -> None:
    config = CompareConfig(judge=JudgeSpec(rule_field="likes"))

    def cases(*rules: str) -> list[Comparison]:
        return [Comparison("a", "x?", "x", "y", metadata={"likes": rule}) for rule in rules]

    assert (
        mixed_rules(config, cases("longer", "shorter")) == mixed_rules(config, cases("contains:a", "contains:b")) == []
    )
    assert "unlike" in mixed_rules(config, cases("longer", "contains:a"))[0]
    assert mixed_rules(CompareConfig(judge=JudgeSpec(gold="runs/gold")), cases("longer")) == []


def test_other_settings_are_not_taken_for_the_same(
    done: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with other settings, and all that is made of it, is named; an unknown run too."""
    _, path = done
    settings = yaml.safe_load(Path(path).read_text())
    settings["runs"]["sft"]["settings"]["lora"] = {"r": 2}
    other = write(tmp_path, settings)
    assert {job.state for job in plan_jobs(read_config(CompareConfig, other))} == {"outdated"}
    assert "runs/sft" in refused(capsys, "compare", other)
    assert "'p-dpoo'" in refused(capsys, "compare", path, "--only", "p-dpoo")


def test_a_run_from_before_a_setting_existed_is_kept(done: tuple[Path, str]) -> None:
    folder, path = done
    run = folder / "runs/sft/run.json"
    before = run.read_text()
    record = json.loads(before)
    del record["config"]["data"]["split_seed"]
    run.write_text(json.dumps(record))
    try:
        assert {job.state for job in plan_jobs(read_config(CompareConfig, path))} == {"there"}
    finally:
        run.write_text(before)


def test_another_vocabulary_is_refused(
    done: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = done
    settings = yaml.safe_load(Path(path).read_text())
    settings["arms"]["toy"] = {"run": save_toy(tmp_path / "toy")}
    capsys.readouterr()
    assert "vocabulary" in refused(capsys, "compare", write(tmp_path, settings))


def test_prompts_that_a_run_learnt_from_are_not_asked(
    done: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = done
    settings = yaml.safe_load(Path(path).read_text())
    settings["output_dir"] = str(tmp_path / "out")
    settings["runs"] = {"sft": settings["runs"]["sft"]}
    settings["runs"]["sft"]["settings"]["data"] = {"test_fraction": 0.1}
    settings["arms"] = {"SFT": {"run": "{sft}"}, "chosen": {"chosen": True}}
    with pytest.raises(SystemExit):
        main(["compare", write(tmp_path, settings)])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert "runs/sft" in said


def row(text: str, logp: float, base: float, surprise: float | None = 2.0) -> AnswerRow:
    drawn: DrawnRow = {"response": text, "tokens": 3, "seconds": 0.5, "logp": logp, "base_logp": base}
    return {**drawn, "surprise": surprise}


def planted(
    gold: Mapping[str, Sequence[float]],
    costs: dict[str, float] | None = None,
    surprise: Mapping[str, Sequence[float | None]] | None = None,
    known_by: dict[str, str] | None = None,
) -> Result:
    """Four people, three of them many, two prompts each; arms by their rewards, the base first."""
    cases = [Comparison(user, f"{q}?", "x", "y") for q in "ab" for user in "mnof"]
    texts = {name: [f"{name} {i}" for i in range(8)] for name in gold}
    arms = {
        name: Answered(
            [row(t, -10.0 + i, -10.0, (surprise or {}).get(name, [2.0] * 8)[i]) for i, t in enumerate(texts[name])],
            np.array(values, float),
            "base" if name == "SFT" else "best of" if name.startswith("best") else "trained",
            int(name.split()[-1]) if name.startswith("best") else 0,
            0.0,
            (costs or {}).get(name, 60.0),
            (known_by or {}).get(name),
        )
        for name, values in gold.items()
    }
    judge = by_reward(cases, texts, {name: arm.gold for name, arm in arms.items()})
    groups = {"m": "many", "n": "many", "o": "many", "f": "few"}
    return measure(arms, "SFT", cases, groups, judge, "u", list(gold))


def test_figures_by_hand() -> None:
    """Everyone's mean first; of a tie half a win; KL the mean of log pi - log pi_base; the bound of best of N."""
    result = planted({"SFT": [0.0] * 8, "A": [1, 1, 1, -1, 3, 0, 1, -1], "best of 2": [1] * 8})
    a = result.arm("A")
    assert a.all.gain.value == pytest.approx((2 + 0.5 + 1 - 1) / 4)
    assert a.all.wins.value == pytest.approx((1 + 0.75 + 1 + 0) / 4)
    assert a.groups["many"].gain.value == pytest.approx(3.5 / 3)
    assert (a.groups["few"].gain.value, a.groups["few"].people) == (-1.0, 1)
    assert list(result.groups.items()) == [("many", 3), ("few", 1)]
    assert a.all.kl is not None
    assert a.all.kl.value == pytest.approx(3.5)  # the mean of 0 to 7
    bound = result.arm("best of 2").all.kl
    assert bound is not None
    assert bound.value == pytest.approx(np.log(2) - 0.5)
    assert result.matrix.rates["A", "best of 2"].user.value == pytest.approx((0.75 + 0.25 + 0.5 + 0) / 4)


def test_what_cannot_be_read_is_worth_the_least() -> None:
    cases = [Comparison("a", "x?", "x", "y"), Comparison("a", "z?", "x", "y")]
    table = {"good": 2.0, "bad": -1.0, "": np.nan}
    gold = lambda _, answers: np.array([table[text] for text in answers])  # noqa: E731
    found = gold_rewards(gold, cases, {"a": ["good", ""], "b": ["bad", "good"], "c": ["", "bad"]})
    assert {name: values.tolist() for name, values in found.items()} == {"a": [2, -1], "b": [-1, 2], "c": [-1, -1]}
    with pytest.raises(PrmError, match="empty"):
        gold_rewards(gold, cases, {"a": ["", "bad"], "b": ["", "good"]})


def test_advice_follows_the_figures() -> None:
    """Names change with the numbers: the best, the cheapest, the closest, what needs no training, who loses."""
    gold = {"SFT": [0] * 8, "A": [2] * 8, "B": [5, 5, 5, -4] * 2, "best of 2": [1] * 8}
    advised = " ".join(advice(planted(gold, {"A": 120.0, "B": 600.0, "best of 2": 60.0})))
    assert "Most reward: A, +2.00" in advised  # B loses one person of four: not sure
    for figures in (
        "best of 2, +1.00 [+1.00, +1.00], in 1.0 minutes",
        "best of 2, at most 0.19 nats",
        "few (1 user)",
    ):
        assert figures in advised
    gold["A"], gold["B"] = [1] * 8, [3] * 8
    advised = " ".join(advice(planted(gold, {"A": 30.0, "B": 600.0, "best of 2": 60.0})))
    assert "Most reward: B, +3.00" in advised
    assert "A, +1.00" in advised
    none = advice(planted({"SFT": [0] * 8, "A": [0] * 8, "B": [-1] * 8}))
    assert none[0].startswith("Only 4 users asked: ")
    assert none[1].startswith("No arm is significantly better than SFT")
    assert "many: B (-1.00" in none[2]
    seldom_but_much = [1, 1, 1, 1, 1, 1, 1, -9]  # 3.5 duels of 4 won, and less reward than SFT's in the mean
    assert advice(planted({"SFT": [0] * 8, "A": seldom_but_much}))[1].startswith(
        "No arm is significantly better than SFT"
    )


def test_first_is_who_is_ahead_on_the_same_prompts() -> None:
    """Equal arms are level; one that is a hair better on every prompt is ahead, however wide its own interval."""
    even = [1.0, 3.0, 5.0, 7.0] * 2
    level = advice(planted({"SFT": [0] * 8, "A": even, "B": even}))[1]
    assert "A, +4.00 [+2.00, +6.00] and B, +4.00 [" in level
    ahead = advice(planted({"SFT": [0] * 8, "A": even, "B": [x + 0.1 for x in even]}))[1]
    assert ahead.startswith("Most reward: B, +4.10")
    assert "A" not in ahead


def test_a_divergence_below_0_is_drawn_where_it_is() -> None:
    result = planted({"SFT": [0] * 8, "A": [1] * 8})
    below = replace(result.arms[1].all, kl=Estimate(-0.35, -0.5, -0.2))
    shown = panels(replace(result, arms=(result.arms[0], replace(result.arms[1], all=below))))
    assert shown[0].points[1].x == -0.35
    low, high = arms_picture(shown, "gain").axes[0].get_xlim()
    assert low < -0.35 < high


def test_advice_tells_whether_an_arm_knows_its_people() -> None:
    gold = {"SFT": [0] * 8, "A": [2] * 8, "A, stranger": [1] * 8, "B": [3] * 8, "B, stranger": [4, 2] * 4}
    said = advice(planted(gold, known_by={"A, stranger": "A", "B, stranger": "B"}))
    assert any(line.startswith("A ") and "100.0 [100.0, 100.0] %" in line for line in said)
    assert any(line.startswith("B ") and "not shown" in line and "50.0 [" in line for line in said)
    assert not any("generic user" in line for line in advice(planted(gold)))


def test_advice_tells_who_is_answered_in_broken_language() -> None:
    """One person of four, of the group that is alone with its taste; the mean over everybody would hide it."""
    gold, broken = {"SFT": [0] * 8, "A": [2] * 8}, {"A": [2, 2, 2, 8, 2, 2, 2, 4]}
    result = planted(gold, surprise=broken)
    few, everybody = result.arm("A").groups["few"].surprise, result.arm("A").all.surprise
    assert few is not None
    assert everybody is not None
    assert (few.value, everybody.value) == (6.0, 3.0)
    said = [sentence for sentence in advice(result) if "language odd" in sentence]
    (line,) = said
    assert all(named in line for named in ("group few", "its own 2.00", "A 6.00"))
    assert not any("odd" in sentence for sentence in advice(planted(gold, surprise={"A": [2.9] * 8})))


def test_empty_responses_are_counted_beside_the_language_of_the_others() -> None:
    """f's only written response has 4 nats; n's are all empty, and leave no language to judge."""
    gold, surprise = {"SFT": [0] * 8, "A": [2] * 8}, {"A": [2, None, 2, None, 2, None, 2, 4]}
    arm = planted(gold, surprise=surprise).arm("A")
    assert arm.groups["few"].surprise is not None
    assert (arm.groups["few"].surprise.value, arm.groups["few"].empty, arm.all.empty) == (4.0, 0.5, 0.375)
    assert planted(gold, surprise={"A": [None] * 8}).arm("A").all.surprise is None


def test_sides_are_found_by_the_votes_of_others() -> None:
    """Three agree on every pair, one does not; a pair that nobody else judged tells nothing."""
    log = [Comparison(user, f"{i}?", *(("x", "y") if user != "d" else ("y", "x"))) for i in range(3) for user in "abcd"]
    log.append(Comparison("a", "alone?", "x", "y"))
    assert sides(log, ["a", "b", "d"]) == {"a": MANY, "b": MANY, "d": FEW}


def test_cases_are_the_same_prompts_for_all_where_they_can_be() -> None:
    log = [
        Comparison(user, f"{i}?", "x", "y", p_chosen=0.5 if (user, i) == ("b", 0) else 1.0)
        for i in range(6)
        for user in "ab"
    ]
    train = [Comparison("a", "t?", "x", "y")] * 2 + [Comparison("b", "t?", "x", "y"), Comparison("c", "t?", "x", "y")]
    cases = choose_cases(train, log, 0, 3, 0, lambda c: c.prompt != "1?")
    asked = {user: [c.prompt for c in cases if c.user_id == user] for user in "ab"}
    assert len(asked["a"]) == len(asked["b"]) == 3
    assert "0?" not in asked["b"]
    assert not {"1?"} & {*asked["a"], *asked["b"]}
    assert len({*asked["a"], *asked["b"]}) <= 4
    assert {c.user_id for c in choose_cases(train, log, 1, 3, 0, lambda c: True)} == {"a"}
    with pytest.raises(PrmError, match="held-out"):
        choose_cases([], log, 0, 3, 0, lambda c: True)


@pytest.mark.parametrize("path", sorted(Path("configs/policy").glob("compare-*.yaml")), ids=lambda path: path.stem)
def test_shipped_runs_parse_strictly(path: Path) -> None:
    """Each run's files and settings make sense together, and nothing of it is there."""
    config = read_config(CompareConfig, path)
    config.check()
    assert [job.name for job in plan_jobs(config)] == list(config.runs)


def test_a_language_model_gets_the_day_of_the_runs_beside_it(tiny: str, tmp_path: Path, clock: Clock) -> None:
    """A month later, too: as base, as another arm, and as the generator of what a run ranks."""
    dated = with_template(tiny, tmp_path / "dated", DATED)
    clock.set(FIRST)
    policy = load_policy(dated)
    policy.settings.objective = TrainedBy("dpo", {"beta": 0.1})
    (tmp_path / "run").mkdir()
    save(policy, tmp_path / "run", {})
    clock.set(LATER)
    arms = {"LM": ArmSpec(run=dated), "x": ArmSpec(run=str(tmp_path / "run"))}
    config = CompareConfig(arms=arms, base="LM", max_users=2, max_prompts=2, max_new_tokens=4)
    log = log_of(6)
    task = _new_task(config, DataSplit(log[:9], [], log[9:]), lambda c: True)
    assert "29 November 2026" in task.base.encoder.prompt_text([Message("user", "?")])
    assert _made_of(arms["x"], task) != _made_of(arms["x"], replace(task, base=Sampler.from_pretrained(dated)))
    scorer = Scorer.from_pretrained(tmp_path / "run")
    flags = Namespace(generator=dated, run=str(tmp_path / "run"), device=None, dtype="float32")
    generator = open_named(flags, scorer, Sampling(), "")
    assert isinstance(generator, LocalGenerator)
    assert "29 November 2026" in generator.sampler.encoder.prompt_text([Message("user", "?")])
    alone = replace(config, arms={"LM": arms["LM"], "other": ArmSpec(run=dated, prompted={"longer": "x"})})
    later = _new_task(alone, DataSplit(log[:9], [], log[9:]), lambda c: True)
    assert "24 December 2026" in later.base.encoder.prompt_text([Message("user", "?")])
