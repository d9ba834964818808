"""`policy sft`: next-token loss on answers, merged into a language model that P-DPO starts from."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from policy.cli import main
from policy.config import SftConfig
from policy.dpo import train_dpo
from policy.setup import new_policy
from policy.sft import build_sft_trainer, chosen_responses, encode_responses, split_responses, train_sft
from prm.checkpoint.checkpoint import load
from prm.checkpoint.config_file import TrainedBy
from prm.config import BackboneConfig, DataConfig, OptimConfig, UserConfig
from prm.errors import CheckpointError, DataError, PrmError
from prm.io.run_files import read_run
from prm.io.tables import write_jsonl
from prm.models.backbones import resolve
from prm.scoring.scorer import Scorer
from prm.users.index import UserIndex
from rerank.sampling.sampler import Sampler
from tests.conftest import CHAT_TEMPLATE
from tests.planted import opposed_people
from tests.policy.conftest import dpo_config

OPTIM = OptimConfig(
    epochs=4.0, batch_size=4, micro_batch_size=2, eval_steps=5, early_stopping_patience=99, lora_lr=0.01
)


def sft_config(backbone: str, folder: Path, **changes: Any) -> SftConfig:
    base = SftConfig(
        output_dir=str(folder / "sft"),
        data=DataConfig(path=str(folder / "log.jsonl")),
        backbone=BackboneConfig(backbone, dtype="float32"),
        optim=OPTIM,
    )
    return replace(base, **changes)


def nll_by_hand(folder: str, answers: list[tuple[Any, str]]) -> float:
    """Mean over all tokens of the answers, their end included, of a plain transformers model."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total, tokens = 0.0, 0
    for prompt, response in answers:
        asked = tokenizer(f"<|user|>{prompt}<|end|>\n<|assistant|>")["input_ids"]
        answer = tokenizer(f"{response}<|end|>")["input_ids"]
        with torch.no_grad():
            logs = model(torch.tensor([[*asked, *answer]])).logits[0].log_softmax(-1)
        total -= sum(float(logs[len(asked) - 1 + i, token]) for i, token in enumerate(answer))
        tokens += len(answer)
    return total / tokens


def test_the_loss_is_the_mean_over_all_tokens(tiny: str, tmp_path: Path) -> None:
    answers = chosen_responses(opposed_people(3, 0, people=2))
    answers[0] = (answers[0][0], "a fox")
    config = sft_config(tiny, tmp_path)
    checkpoint = new_policy(config, UserConfig("uniform", num_virtual_tokens=0), UserIndex(), TrainedBy("sft"))
    encoded = encode_responses(checkpoint.encoder(), answers)
    trainer: Any = build_sft_trainer(checkpoint, encoded, encoded, config, tmp_path)
    expected = nll_by_hand(tiny, answers)
    assert trainer.evaluate()["eval_nll"] == pytest.approx(expected, rel=1e-4)
    rows = list(trainer.get_train_dataloader().dataset)
    batches = [trainer.data_collator(rows[i : i + 2]) for i in (0, 2, 4)] + [trainer.data_collator(rows[6:])]
    total = sum(batch["weight"].sum() for batch in batches)
    losses = [float(trainer.compute_loss(trainer.model, b, num_items_in_batch=total).detach()) for b in batches]
    assert sum(losses) == pytest.approx(expected, rel=1e-4)  # whatever the micro-batches
    assert losses[-1] == 0.0  # what fills rounds up


@pytest.mark.parametrize("end", ["<|end|>\n", "\n<|end|>", "\n\n"], ids=["of turn", "behind a line end", "none"])
def test_what_is_learnt_ends_where_sampling_ends(tiny: str, tmp_path: Path, end: str) -> None:
    """At the end of text where the template writes no end; for P-DPO's implicit reward, too."""
    shutil.copytree(tiny, tmp_path / "lm")
    (tmp_path / "lm" / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<|end|>\n", end))
    config = sft_config(str(tmp_path / "lm"), tmp_path)
    checkpoint = new_policy(config, UserConfig("uniform", num_virtual_tokens=0), UserIndex(), TrainedBy("sft"))
    encoder, stops = checkpoint.encoder(), Sampler(checkpoint).end_ids
    sequence = encode_responses(encoder, [("why?", "a fox")])[0]
    learnt = sequence.ids[slice(*sequence.response)]
    assert checkpoint.tokenizer.decode(learnt) == "a fox" + (end.rstrip() if "<|end|>" in end else "<|eos|>")
    assert [token in stops for token in learnt] == [False] * (len(learnt) - 1) + [True]


def test_a_policy_that_nothing_would_teach_to_stop_is_refused(backbone_of: Callable[..., str], tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    shutil.copytree(backbone_of(chat=False), endless)
    tokens = endless / "tokenizer_config.json"
    tokens.write_text(tokens.read_text().replace('"eos_token": "<|eos|>",', ""))
    write_jsonl(tmp_path / "log.jsonl", opposed_people(12, 0, people=2))
    with pytest.raises(PrmError, match="stop"):
        train_sft(sft_config(str(endless), tmp_path))
    assert not list(tmp_path.glob("sft*"))


@pytest.mark.parametrize("train", ["lora", "full"])
def test_what_was_learnt_is_in_the_weights(tiny: str, tmp_path: Path, train: Any) -> None:
    log = opposed_people(12, 0, people=2)
    write_jsonl(tmp_path / "log.jsonl", log)
    config = sft_config(tiny, tmp_path, train=train, optim=replace(OPTIM, backbone_lr=3e-3))
    run = train_sft(config)
    metrics = json.loads((run / "metrics.json").read_text())
    answers = chosen_responses(log)
    assert nll_by_hand(str(run / "backbone"), answers) < nll_by_hand(tiny, answers) - 0.5
    assert not (run / "adapter").exists()
    info = read_run(run)
    held = info["data"]["validation_answers"]
    assert info["data"]["train_answers"] + held == len(answers)
    assert info["parameters"] is not None
    assert info["parameters"]["users"] == 0
    assert metrics["validation_nll"] == min(e["eval_nll"] for e in metrics["history"])
    assert resolve(str(run)) == str(run / "backbone")
    with pytest.raises(CheckpointError, match=r"sft.*reward"):
        Scorer.from_pretrained(run)
    assert load(run).settings.objective == TrainedBy("sft")
    card = (run / "README.md").read_text()
    assert "# Policy\n" in card
    assert "`test.jsonl`" in card
    assert "personal data" not in card


@pytest.mark.parametrize(("held_out", "seen"), [(0.0, 4), (0.5, 0)])
def test_a_run_that_saw_what_is_held_out_is_named(
    tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, held_out: float, seen: int
) -> None:
    """Half of eight prompts: seen where SFT was given none to hold out, not where it held out the same."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(8, 0, people=2))
    data = DataConfig(path=str(tmp_path / "log.jsonl"), test_fraction=held_out)
    sft = train_sft(sft_config(tiny, tmp_path, data=data))
    with caplog.at_level("WARNING"):
        train_dpo(replace(dpo_config(str(sft), tmp_path), data=replace(data, test_fraction=0.5)))
    warnings = [message for message in caplog.messages if message.startswith(f"{sft} was trained on")]
    assert [message.split(" was trained on ")[1].split(" prompts")[0] for message in warnings] == (
        [f"{seen} of the 4"] if seen else []
    )


def test_dpo_starts_from_it_and_is_compared_with_it(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SFT's adapter is in the backbone, DPO's is on top: without DPO's, the policy is the SFT model."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(8, 0, people=2))
    sft = train_sft(sft_config(tiny, tmp_path))
    run = train_dpo(dpo_config(str(sft), tmp_path))
    checkpoint = load(run)
    plain = AutoModelForCausalLM.from_pretrained(sft / "backbone")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), checkpoint.model.without_adapter():
        assert torch.equal(checkpoint.model(ids, torch.ones_like(ids)).logits, plain(ids).logits)
    assert checkpoint.model.origin != load(sft).model.origin  # the reference is the SFT model, not the first one
    with pytest.raises(PrmError, match="backbone"):
        resolve(str(run))


def test_answers_from_a_file(tiny: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"what of {i}?", "response": f"a fox {i}"} for i in range(10)]
    write_jsonl(tmp_path / "answers.jsonl", [*rows, rows[0]])
    path = tmp_path / "sft.yaml"
    path.write_text(
        f"output_dir: {tmp_path / 'sft'}\nresponses: {tmp_path / 'answers.jsonl'}\nbackbone:\n  name: {tiny}\n"
        "  dtype: float32\noptim:\n  epochs: 1.0\n"
    )
    main(["sft", str(path)])
    info = read_run(tmp_path / "sft")
    assert (info["data"]["train_answers"], info["data"]["validation_answers"]) == (8, 2)
    assert not (tmp_path / "sft" / "test.jsonl").exists()


def test_no_prompt_is_on_both_sides() -> None:
    answers: list[Any] = [(f"p{i % 5}", f"answer {i}") for i in range(20)]
    learn, check = split_responses(answers, 0.4, 0)
    assert {p for p, _ in learn} & {p for p, _ in check} == set()
    assert (len(learn), len(check)) == (12, 8)
    assert split_responses(answers, 0.4, 0) == (learn, check)
    assert split_responses(answers, 0.4, 1) != (learn, check)
    with pytest.raises(DataError, match="1 prompts"):
        split_responses(answers[:1], 0.4, 0)


def test_ties_and_copies_are_no_lessons() -> None:
    log = opposed_people(2, 0, people=4)
    tie = replace(log[0], chosen="nobody's", p_chosen=0.5)
    assert len(chosen_responses([*log, *log, tie])) == 4


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('{"prompt": "a?"}', "line 2.*response"),
        ('{"prompt": "a?", "response": ""}', "line 2.*response"),
        ('{"response": "b"}', "line 2.*prompt"),
        ('{"prompt": "a?", "response": 3}', "line 2.*response"),
    ],
)
def test_a_bad_answer_is_named(tiny: str, tmp_path: Path, row: str, fault: str) -> None:
    (tmp_path / "answers.jsonl").write_text('{"prompt": "a?", "response": "b"}\n' + row + "\n")
    config = sft_config(tiny, tmp_path, data=DataConfig(), responses=str(tmp_path / "answers.jsonl"))
    with pytest.raises(DataError, match=fault):
        train_sft(config)
    assert not list(tmp_path.glob("sft*"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"responses": "x.jsonl"}, "exclude each other"),
        ({"responses": "x.jsonl", "data": DataConfig()}, "no such file"),
        ({"data": DataConfig()}, "'data.path' is missing"),
    ],
)
def test_settings_that_make_no_sense_are_named(tiny: str, tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(PrmError, match=fault):
        train_sft(sft_config(tiny, tmp_path, **changes))
