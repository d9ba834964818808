"""A row that cannot be read, whatever its fault, is named; or left out, counted and listed, in every command."""

import logging
import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers.normalizers import Replace
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

import policy.cli
from policy import dpo, sft
from policy.config import DpoConfig, OnlineConfig, PpoConfig, SftConfig
from policy.judging.answer_files import duels_of, read_answers
from policy.judging.judges import gold
from policy.online import train as online_train
from policy.ppo import train as ppo_train
from policy.prompts import prompts_that_fit
from prm.checkpoint import checkpoint as checkpoints
from prm.cli import main
from prm.cli.commands import _readable as readable_by_run
from prm.cli.commands import train_command
from prm.config import BackboneConfig, DataConfig, FeedbackConfig, RewardModelConfig, TrainConfig, UserConfig
from prm.data import sources
from prm.data.comparison import Comparison
from prm.data.profile.token_lengths import measure_tokens
from prm.data.sources import read_feedback
from prm.errors import DataError
from prm.evaluation.audit import audit_run
from prm.evaluation.evaluate import evaluate_run
from prm.io.tables import read_rows, write_jsonl
from prm.scoring.adapt_run import adapt_run
from prm.scoring.scorer import Scorer
from prm.training import run as runs
from prm.training.prepare_log import DataSplit, split_data
from prm.training.setup import new_checkpoint
from prm.training.unreadable_rows import encoder_of_config
from prm.users.index import UserIndex
from tests.conftest import CHAT_TEMPLATE, save_random
from tests.planted import opposed_people
from tests.tiny_runs import config_of, small_log, train_any

REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
SYSTEM = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what of kings?"}]
LONG = "fox " * 200
FAULTS: dict[int, tuple[dict[str, Any], str]] = {  # line of the log: (what is changed there, the fault)
    4: ({"prompt": SYSTEM}, "the chat template refuses the conversation: no system"),
    7: ({"chosen": LONG}, "'chosen': the response, .* raise 'backbone.max_length' to"),
    9: ({"rejected": "\u200b"}, "'rejected': no token is left of the response"),
}
POLICIES: dict[str, Any] = {"dpo": (dpo, DpoConfig), "sft": (sft, SftConfig), "ppo": (ppo_train, PpoConfig)}
POLICIES |= {"online": (online_train, OnlineConfig)}
READ = {"sft": [4, 7], "ppo": [4], "online": [4]}  # what of it is read at all


@pytest.fixture(scope="module")
def backbone(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama whose template refuses system messages, and whose tokenizer passes over zero-width characters."""
    folder = tmp_path_factory.mktemp("picky") / "backbone"
    shutil.copytree(backbone_of("llama"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = Replace("\u200b", "")
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(REFUSES)
    return str(folder)


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., str]:
    """A log of 30 rows, with faults in some of its lines."""

    def write(*lines: int) -> str:
        rows: list[dict[str, Any]] = [
            {"user_id": f"u{i % 3}", "prompt": f"what of {i}?", "chosen": f"king {i}", "rejected": f"fox {i}"}
            for i in range(30)
        ]
        for line in lines:
            rows[line - 1] |= FAULTS[line][0]
        write_jsonl(tmp_path / "log.jsonl", rows)
        return str(tmp_path / "log.jsonl")

    return write


def divided(how: str, backbone: str, log: str, on_bad_row: Any, monkeypatch: pytest.MonkeyPatch) -> DataSplit:
    """The parts that a training command makes of a log, without the training."""
    data = DataConfig(log, on_bad_row=on_bad_row, test_fraction=0.3)
    common: dict[str, Any] = {"backbone": BackboneConfig(backbone, max_length=100), "data": data}

    def stop(config: Any, kind: str, divide: Callable[[], DataSplit], *_: Any, **__: object) -> Any:
        return divide()

    if how in POLICIES:
        module, kind = POLICIES[how]
        monkeypatch.setattr(module, "make_run", stop)
        monkeypatch.setattr("prm.checkpoint.checkpoint.read_config", lambda folder: {})
        reward: Any = {"reward": "r"} if how in ("ppo", "online") else {}
        return getattr(module, f"train_{how}")(kind(**common, **reward))
    monkeypatch.setattr(runs, "make_run", stop)
    soft = how == "soft prompt"
    reward = RewardModelConfig("soft_prompt" if soft else "linear_head")
    users = UserConfig("bayes" if how == "bayes" else "individual")
    return runs.train(TrainConfig(**common, reward=reward, users=users, train="lora" if soft else "frozen"))  # type: ignore[return-value]


COMMANDS = ["linear head", "bayes", "soft prompt", *POLICIES]


@pytest.mark.parametrize("how", COMMANDS)
def test_training_leaves_out_what_it_cannot_read_and_says_what(
    how: str, backbone: str, log: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the log is divided: the held-out part holds none of it either."""
    path, read = log(*FAULTS), READ.get(how, list(FAULTS))
    parts = divided(how, backbone, path, "skip", monkeypatch)
    everything = [*parts.train, *parts.validation, *parts.test]
    lines = {int(c.origin.rpartition(" ")[2]) for c in everything}
    assert lines == set(range(1, 31)) - set(read)
    assert [row["row_of"] for row in parts.skipped] == [f"{path}, line {line}" for line in read]
    assert (parts.account["rows"]["used"], parts.account["rows"]["bad"]) == (30 - len(read), len(read))
    assert all(row["user_id"] and row["row"] and row["fault"] for row in parts.skipped)


@pytest.mark.parametrize(("how", "line"), [(how, line) for how in COMMANDS for line in READ.get(how, FAULTS)])
def test_otherwise_training_stops_at_the_row_by_its_name(
    how: str, line: int, backbone: str, log: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=f"log.jsonl, line {line}: {FAULTS[line][1]}") as raised:
        divided(how, backbone, log(line), "stop", monkeypatch)
    assert "\n" not in str(raised.value)
    assert "'data.on_bad_row: skip'" in str(raised.value)


def test_a_log_of_which_nothing_can_be_read_says_so(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "log.jsonl", [Comparison("a", str(i), LONG, "b") for i in range(3)])
    with pytest.raises(DataError, match=r"line 1: .* 3 comparisons"):
        divided("dpo", backbone, str(tmp_path / "log.jsonl"), "skip", monkeypatch)


def saved(backbone: str, folder: Path) -> Path:
    config = TrainConfig(backbone=BackboneConfig(backbone, dtype="float32", max_length=100))
    folder.mkdir()
    checkpoints.save(new_checkpoint(config, UserIndex(["u0"])), folder, {})
    return folder


def test_what_is_measured_or_taken_in_is_read_as_the_run_reads(
    backbone: str, log: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`prm evaluate`, `audit`, `adapt` and `cold_start` all read their log through this."""
    path = log(*FAULTS)
    args = Namespace(run=str(saved(backbone, tmp_path / "run")), log=path, backbone=None)
    with caplog.at_level(logging.INFO):
        kept = readable_by_run(args, FeedbackConfig(path, on_bad_row="skip"))
    assert {int(c.origin.rpartition(" ")[2]) for c in kept.comparisons} == set(range(1, 31)) - set(FAULTS)
    for line in FAULTS:
        assert f"log.jsonl, line {line}: " in caplog.text
    with pytest.raises(DataError, match=r"log.jsonl, line 4: .*template"):
        readable_by_run(args, FeedbackConfig(path))


@pytest.mark.parametrize("skip", [True, False])
def test_answers_to_learn_from_are_read_alike(
    backbone: str, tmp_path: Path, skip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"{i}?", "response": "king"} for i in range(5)]
    rows[1]["prompt"], rows[2]["response"], rows[3]["response"] = SYSTEM, LONG, "\u200b"
    write_jsonl(tmp_path / "answers.jsonl", rows)
    config = SftConfig(responses=str(tmp_path / "answers.jsonl"), backbone=BackboneConfig(backbone, max_length=100))
    config.data.on_bad_row = "skip" if skip else "stop"
    if not skip:
        with pytest.raises(DataError, match=r"answers.jsonl, line 2: .*template"):
            sft._divide(config)
        return
    found = [row["row_of"].rpartition(" ")[2] for row in sft._divide(config).skipped]
    assert found == ["2", "3", "4"]
    assert sft._read_responses(config)[0] == [("0?", "king"), ("4?", "king")]


def test_what_cannot_be_read_is_described_and_not_asked(backbone: str) -> None:
    encoder = encoder_of_config(BackboneConfig(backbone, max_length=100), UserConfig())
    rows = [Comparison("a", "why?", "so", "no", origin="row 1"), Comparison("a", SYSTEM, "so", "no", origin="row 2")]  # type: ignore[arg-type]
    rows += [Comparison("a", "how?", "so", "\u200b", origin="row 3")]
    found = measure_tokens(rows, encoder)
    assert (found.sequences, found.unfit) == (6, 3)
    assert found.first_unfit.startswith("row 2: the chat template refuses")
    assert prompts_that_fit(encoder, [c.prompt for c in rows], (), 10) == ["why?", "how?"]


@pytest.mark.parametrize("place", ["linear", "prefix", "suffix"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_checked_before_training_is_what_training_reads(
    backbone: str, tmp_path: Path, kind: str, place: Any
) -> None:
    """Learnt positions end, and bound what is read."""
    if kind == "gpt2":
        config = GPT2Config(vocab_size=336, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        backbone = save_random(tmp_path / "gpt2", AutoModelForCausalLM, config)
    reward = RewardModelConfig() if place == "linear" else RewardModelConfig("soft_prompt", place)
    made = TrainConfig(backbone=BackboneConfig(backbone), reward=reward, users=UserConfig(num_virtual_tokens=1))
    before, then = encoder_of_config(made.backbone, made.users, reward), new_checkpoint(made, UserIndex()).encoder()
    assert before.max_length == then.max_length == (64 if kind == "gpt2" else 1024)
    assert len(then.encode("fox " * 1100, "king").ids) == then.max_length
    one, other = (e.encode("why?", "king", 1) for e in (before, then))
    assert (before.without_user(one), one.response) == (then.without_user(other), other.response)


def test_what_a_finished_run_leaves_out_is_listed_beside_what_it_made(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As training does; where nothing is left out any more, nothing is listed, and adapting adds to training's list."""
    monkeypatch.setenv("PRM_CACHE", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "log.jsonl", [{"user_id": "p0", "prompt": "no answers"}, *small_log(12)])
    run = train_any("linear", config_of("linear", tiny, tmp_path))
    judged = [c.to_row() for c in opposed_people(12, 3, people=2)]
    rows = [*judged, *(row | {"user_id": f"new {row['user_id']}"} for row in judged)]
    log = tmp_path / "more.jsonl"
    bad: dict[str, object] = {"user_id": "zoe", "prompt": "and now?", "chosen": "a"}

    skip = ["--data.on_bad_row", "skip"]

    def listed(name: str) -> list[str]:
        return [str(row["row_of"]) for _, row in read_rows(run / name)] if (run / name).exists() else []

    for lines in ([*rows, bad], rows):
        write_jsonl(log, lines)
        for what, *flags in (["evaluate"], ["audit"], ["cold_start", "--after", "1"]):
            main([what, str(run), str(log), *skip, *flags])
            name = f"{what}-more-skipped.jsonl".replace("evaluate", "evaluation")
            assert listed(name) == ([f"{log}, line {len(lines)}"] if bad in lines else [])
    write_jsonl(log, [*rows, bad])
    main(["evaluate", str(run), str(log), *skip])
    main(["adapt", str(run), str(log), *skip])
    assert listed("skipped.jsonl") == [f"{tmp_path / 'log.jsonl'}, line 1", f"{log}, line {len(rows) + 1}"]
    assert not listed("evaluation-more-skipped.jsonl")  # as what was measured, it is of other people now
    main(["data", "describe", str(log), *skip, "--backbone", "none", "--output", str(run / "d")])
    assert len(listed("d/skipped.jsonl")) == 1


def test_a_row_that_python_hands_over_is_named_by_its_file(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads a log and hands it on without looking at it; without a file, by its place in the list."""
    monkeypatch.setenv("PRM_CACHE", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "log.jsonl", small_log(12))
    run = train_any("linear", config_of("linear", tiny, tmp_path))
    whole = small_log(4)
    write_jsonl(tmp_path / "more.jsonl", [*whole[:2], replace(whole[2], rejected=LONG), *whole[3:]])
    log = read_feedback(FeedbackConfig(path=str(tmp_path / "more.jsonl"))).comparisons
    scorer = Scorer.from_pretrained(run)
    unnamed = [replace(c, user_id="p0", origin="") for c in log]
    for do, place in [
        (lambda: evaluate_run(run, log), f"{tmp_path / 'more.jsonl'}, line 3"),
        (lambda: audit_run(run, log), f"{tmp_path / 'more.jsonl'}, line 3"),
        (lambda: adapt_run(run, log), f"{tmp_path / 'more.jsonl'}, line 3"),
        (lambda: scorer.fit_user("p0", unnamed), r"comparisons\[2\]"),
    ]:
        with pytest.raises(DataError, match=f"^{place}: .*response.* 'backbone.max_length'"):
            do()
    for name, response in (("ours", "a king"), ("theirs", LONG)):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": "what?", "user_id": "p0", "response": response}])
    duels = duels_of(*(read_answers(str(tmp_path / f"{name}.jsonl")) for name in ("ours", "theirs")))
    with pytest.raises(DataError, match=f"^{tmp_path / 'theirs.jsonl'}, line 1: .*response"):
        gold(scorer)(duels)


@pytest.mark.parametrize("how", ["linear", "sft", "dpo"])
def test_a_command_reads_its_log_once(how: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch is imported; what was read is handed over, and makes the same parts."""
    write_jsonl(tmp_path / "log.jsonl", [{"user_id": "p0", "prompt": "no answers"}, *small_log(12)])
    config = config_of(how, tiny, tmp_path)
    expected = split_data(config)
    read, parts = list[str](), list[DataSplit]()
    read_table = sources.read_table

    def stop(config: Any, kind: str, divide: Callable[[], DataSplit], *_: Any, **__: object) -> Path:
        parts.append(divide())
        return tmp_path / "run"

    monkeypatch.setattr(sources, "read_table", lambda path, part: read.append(path) or read_table(path, part))
    monkeypatch.setattr({"linear": runs, "sft": sft, "dpo": dpo}[how], "make_run", stop)
    here = Namespace(engine="local", workers=None, device=None)
    train_command(config, here) if isinstance(config, TrainConfig) else policy.cli._train(config)
    assert read == [config.data.path]
    assert parts == [expected]
