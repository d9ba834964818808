"""A policy's folder: to the bit after loading, to rounding after merging, refused where it does not fit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from policy.dpo import train_dpo
from policy.merge import merge_run
from prm.checkpoint.checkpoint import load, save
from prm.checkpoint.config_file import TrainedBy
from prm.config import OptimConfig
from prm.errors import CheckpointError, PrmError
from prm.io.run_files import read_run
from prm.io.tables import write_jsonl
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.conftest import count_tokens
from tests.planted import opposed_people
from tests.policy.conftest import dpo_config

PROMPT, ANSWERS = "what of fox potions?", ["an old king jumps", "seven lazy dogs", "mix potions"]
PEOPLE = ["p0", "p1", None]


def scores(folder: Path) -> torch.Tensor:
    return Scorer.from_pretrained(folder, device="cpu").score_users(PROMPT, ANSWERS, PEOPLE)


def test_loading_changes_no_bit(trained: Path, tmp_path: Path) -> None:
    """Saved again, the files are the same; the same scores come out twice."""
    save(load(trained), tmp_path, read_run(trained))
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()
    assert torch.equal(scores(tmp_path), scores(trained))
    assert set(load_file(trained / "model.safetensors")) == {"user_model.generic", "user_model.offsets"}
    assert not any("embed" in name for name in load_file(trained / "adapter/adapter_model.safetensors"))


def test_a_merged_policy_answers_and_scores_as_before(trained: Path, tmp_path: Path) -> None:
    merged = merge_run(trained, tmp_path / "merged")
    torch.testing.assert_close(scores(merged), scores(trained), rtol=1e-4, atol=1e-5)
    assert not (merged / "adapter").exists()
    assert (merged / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert (merged / "test.jsonl").is_file()
    plain = AutoModelForCausalLM.from_pretrained(merged / "backbone")  # as anyone would load it
    ids = torch.tensor([[5, 6, 7]])
    checkpoint = load(trained)
    with torch.no_grad():
        ours = checkpoint.model(ids, torch.ones_like(ids)).logits
        torch.testing.assert_close(plain(ids).logits, ours, rtol=1e-4, atol=1e-4)
        with checkpoint.model.without_adapter():
            assert not torch.allclose(checkpoint.model(ids, torch.ones_like(ids)).logits, ours, atol=1e-2)
    with pytest.raises(PrmError, match="adapter"):
        merge_run(merged, tmp_path / "again")
    with pytest.raises(PrmError, match="exists"):
        merge_run(trained, merged)
    with pytest.raises(CheckpointError, match="nothing: no such folder"):
        merge_run(tmp_path / "nothing", tmp_path / "x")


def test_full_fine_tuning_keeps_what_it_started_from_apart(
    tiny: str, tmp_path: Path, backbone_of: Callable[..., str]
) -> None:
    """Its implicit reward is against the first backbone, which must be there; answers need the run alone."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(8, 0, people=2))
    first = shutil.copytree(tiny, tmp_path / "first")
    optim = OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=4, eval_steps=5, backbone_lr=1e-3)
    run = train_dpo(dpo_config(str(first), tmp_path, train="full", optim=optim))
    sampler = Sampler.from_pretrained(str(run), torch.device("cpu"))
    policy, encoder = sampler.policy, load(run).encoder()
    plain = AutoModelForCausalLM.from_pretrained(first)
    whole, alone = encoder.encode_with_plain(PROMPT, ANSWERS[0], 1)

    def logp(model: torch.nn.Module, ids: list[int], begin: int) -> float:
        sequence = torch.tensor([ids])
        with torch.no_grad():
            logs = model(input_ids=sequence, attention_mask=torch.ones_like(sequence)).logits[0].log_softmax(-1)
        return sum(float(logs[t - 1, ids[t]]) for t in range(begin, len(ids)))

    expected = 0.1 * (logp(policy, whole.ids, whole.response[0]) - logp(plain, alone.ids, alone.response[0]))
    assert float(scores(run)[0, 0]) == pytest.approx(expected, abs=1e-4)
    first.rename(tmp_path / "moved")
    with pytest.raises(PrmError, match="first"):
        scores(run)
    moved = Scorer.from_pretrained(run, backbone=str(tmp_path / "moved"), device="cpu")
    assert float(moved.score(PROMPT, ANSWERS[:1], "p0")[0]) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(CheckpointError, match="weights"):
        Scorer.from_pretrained(run, backbone=backbone_of("llama", 1), device="cpu")
    assert Sampler.from_pretrained(str(run)).sample(PROMPT, 1, Sampling(4), "p0")


def test_another_backbone_tokenizer_or_table_is_refused(
    trained: Path, tmp_path: Path, backbone_of: Callable[..., str]
) -> None:
    with pytest.raises(CheckpointError, match="weights"):
        load(trained, backbone=backbone_of("llama", 1))
    run = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    for broken, fault in [
        ({k: v for k, v in config.items() if k != "objective"}, "damaged: 'objective' is missing"),
        ({**config, "kind": "judge"}, "'kind' must be one of"),
    ]:
        (run / "config.json").write_text(json.dumps(broken))
        with pytest.raises(CheckpointError, match=fault):
            load(run)


def test_a_person_is_forgotten(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    before, state = scores(run), load_file(run / "model.safetensors")
    forget_user(run, "p0")
    after, left = scores(run), load_file(run / "model.safetensors")
    for name, tensor in state.items():  # nobody else's numbers move by a bit
        others = [row for row in range(len(tensor)) if row != 1] if name.endswith("offsets") else slice(None)
        assert torch.equal(left[name][others], tensor[others])
    adapter = "adapter/adapter_model.safetensors"
    assert (run / adapter).read_bytes() == (trained / adapter).read_bytes()
    # who is a stranger is read with strangers, so that batches have other shapes, and sums other roundings
    torch.testing.assert_close(after, before[[2, 1, 2]], rtol=0.0, atol=1e-5)
    assert torch.equal(after[0], after[2])
    assert not left["user_model.offsets"][1].any()
    for path in run.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".md"):
            assert '"p0"' not in path.read_text(), path


def test_scores_depend_on_their_own_row_alone(trained: Path) -> None:
    """float32: not on the batch, the order or the padding, and a stranger scores as the generic user."""
    scorer = Scorer.from_pretrained(trained, device="cpu", max_tokens=64)
    prompts = [PROMPT, "a?", PROMPT, "what of the quick brown fox and seven wizards?"]
    answers = [ANSWERS[0], ANSWERS[1], ANSWERS[0], "dog " * 20]
    users, texts = ["p0", "p1", "p1", "stranger"], ["", "I am a king.", "", ""]
    together = scorer.score_batch(prompts, answers, users, texts)
    alone = [float(scorer.score(p, [y], u, t)[0]) for p, y, u, t in zip(prompts, answers, users, texts, strict=True)]
    assert together.tolist() == pytest.approx(alone, abs=1e-4)
    assert float(scorer.score(prompts[3], [answers[3]])[0]) == pytest.approx(alone[3], abs=1e-5)
    assert not scorer.knows("stranger")
    assert (
        scorer.prefer(PROMPT, ANSWERS[0], ANSWERS[1], "p0") > 0.5 > scorer.prefer(PROMPT, ANSWERS[0], ANSWERS[1], "p1")
    )


def test_score_users_is_score_batch_of_all_rows_to_the_bit(trained: Path) -> None:
    scorer = Scorer.from_pretrained(trained, device="cpu")
    users, texts = ["p1", None, "stranger", "p0", "p1"], ["I am a king.", "", "I like foxes", "", "I am a king."]
    rows = [(user, text, answer) for user, text in zip(users, texts, strict=True) for answer in ANSWERS]
    columns = [list(column) for column in zip(*rows, strict=True)]
    expected = scorer.score_batch([PROMPT] * len(rows), columns[2], columns[0], columns[1]).view(5, 3)
    found = scorer.score_users(PROMPT, ANSWERS, users, texts)
    assert torch.equal(found, expected)
    assert torch.equal(found[0], found[4])
    assert not torch.allclose(found[2], found[1])


def test_the_reference_is_read_once_for_all_people(trained: Path) -> None:
    """Each person's prompt once for all answers, and the plain one once for all people."""
    scorer = Scorer.from_pretrained(trained, device="cpu")
    read = count_tokens(scorer.model.backbone)
    scorer.score_users(PROMPT, ANSWERS, PEOPLE)
    pairs = [
        scorer.encoder.encode_with_plain(PROMPT, y, row)
        for y in ANSWERS
        for row in {scorer._users.row(u) for u in PEOPLE}
    ]
    both = [{tuple(side.ids[: k + 1]) for side in sides for k in range(len(side.ids))} for sides in zip(*pairs)]
    assert sum(read) == len(both[0]) + len(both[1])


def test_a_policy_that_cannot_read_packs_scores_alike(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer.from_pretrained(trained, device="cpu")
    packed = scorer.score_users(PROMPT, ANSWERS, PEOPLE)
    monkeypatch.setattr("prm.features.extract.can_pack", lambda backbone: False)
    torch.testing.assert_close(scorer.score_users(PROMPT, ANSWERS, PEOPLE), packed, rtol=0, atol=1e-4)


def test_a_prompt_that_was_cut_is_the_same_for_both(tiny: str, tmp_path: Path) -> None:
    """User and text leave less room for the prompt; the reference reads what the policy read."""
    from policy.setup import new_policy
    from prm.users.index import UserIndex

    config = dpo_config(tiny, tmp_path)
    config = replace(config, backbone=replace(config.backbone, max_length=48))
    encoder = new_policy(config, config.users, UserIndex(["a"]), TrainedBy("dpo")).encoder()
    whole, plain = encoder.encode_with_plain("fox " * 40, "king", 1, "I like kings.")
    text = encoder.tokenizer("I like kings.\n\n")["input_ids"]
    assert len(whole.ids) == 48
    assert whole.ids[2 + len(text) :] == plain.ids
    assert whole.ids[:2] == encoder.user_ids(1)
    assert whole.ids[2 : 2 + len(text)] == text
    assert plain.response[0] == whole.response[0] - 2 - len(text)
    assert whole == encoder.encode("fox " * 40, "king", 1, "I like kings.")
