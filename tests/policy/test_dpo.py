"""P-DPO: the paper's loss pair by pair, TRL's own where nobody is known, and people who move apart."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, OPTConfig
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

import prm.features.reference_logps
from policy.config import DpoConfig, Objective
from policy.dpo import PersonalizedDPOTrainer, build_dpo_trainer, policy_collate, policy_pairs, train_dpo
from policy.dpo_metrics import METRICS
from policy.setup import new_policy
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import TrainedBy
from prm.config import OptimConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.data.encoding import Batch
from prm.errors import DataError, PrmError
from prm.evaluation.evaluate import evaluate, evaluate_run
from prm.io.tables import write_jsonl
from prm.models.policy_model import Policy
from prm.models.user_token_embedding import to_generic
from prm.scoring.scorer import Scorer
from prm.training.run import train
from prm.training.trainers.optimizer import RowAdamW, rate
from prm.training.trainers.step_trainer import PaddedDataset, PaddedSampler
from prm.users.index import UserIndex
from tests.conftest import build_config, count_tokens, save_random
from tests.planted import opposed_people
from tests.policy.conftest import dpo_config
from tests.prm.training.trainers.test_packed_training import farthest
from tests.tolerance import GRADIENT, rounding


def small_log(prompts: int = 8, people: int = 2) -> list[Comparison]:
    """A log with weights and soft labels that differ from row to row."""
    rows = opposed_people(prompts, 0, people)
    return [replace(c, weight=0.5 + (i % 5), p_chosen=1.0 - 0.1 * (i % 3)) for i, c in enumerate(rows)]


def start(config: DpoConfig, log: list[Comparison]) -> Checkpoint[Policy]:
    return new_policy(config, config.users, UserIndex.from_comparisons(log), TrainedBy("dpo", {"beta": 0.1}))


def trainer_for(config: DpoConfig, log: list[Comparison], folder: Path) -> Any:  # whose model may be None by its type
    checkpoint = start(config, log)
    pairs = policy_pairs(checkpoint, log)
    return build_dpo_trainer(checkpoint, pairs, pairs, config, folder)


def batch_of(trainer: Any) -> dict[str, torch.Tensor]:
    """The training pairs."""
    return policy_collate(list(trainer.train_dataset))


def by_hand(trainer: PersonalizedDPOTrainer, log: list[Comparison], config: DpoConfig, generic: bool) -> list[float]:
    """beta (log pi/pi_ref of chosen - of rejected) for each comparison, one text at a time, with plain softmaxes."""
    return [margin for margin, _ in margins_and_nats(trainer, log, config, generic)]


def margins_and_nats(
    trainer: PersonalizedDPOTrainer, log: list[Comparison], config: DpoConfig, generic: bool
) -> list[tuple[float, tuple[float, float]]]:
    """As `by_hand`, and nats a token of the chosen and of the rejected answer."""
    model, objective = trainer.model, config.objective
    encoder = start(config, log).encoder()
    plain = AutoModelForCausalLM.from_pretrained(config.backbone.name).eval()
    users = UserIndex.from_comparisons(log)

    def logp(lm: Any, ids: list[int], begin: int) -> float:
        with torch.no_grad():
            logs = lm(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0].log_softmax(-1)
        return sum(float(logs[t - 1, ids[t]]) for t in range(begin, len(ids)))

    found = []
    for c in log:
        ratios, nats = [], []
        for response in (c.chosen, c.rejected):
            row = 0 if generic else users.row(c.user_id)
            text = f"<|user|>{c.prompt}<|end|>\n<|assistant|>"
            asked = encoder.tokenizer(text)["input_ids"]
            answer = [*encoder.tokenizer(response)["input_ids"], *encoder.tokenizer("<|end|>")["input_ids"]]
            user = encoder.user_ids(row)
            personal = logp(model, [*user, *asked, *answer], len(user) + len(asked))
            ratios.append(personal - logp(plain, [*asked, *answer], len(asked)))
            nats.append(-personal / len(answer))
        found.append((objective.beta * (ratios[0] - ratios[1]), (nats[0], nats[1])))
    return found


def moved(trainer: Any) -> None:
    """Away from the start, where everyone would be alike."""
    torch.manual_seed(5)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3 if "lora" in name else 1.0)
    trainer.model.eval()


@pytest.mark.parametrize(("alpha", "sft"), [(0.0, 0.0), (0.25, 0.0), (1.0, 0.0), (0.25, 0.7)])
def test_the_loss_is_the_papers_pair_by_pair(tiny: str, tmp_path: Path, alpha: float, sft: float) -> None:
    """Section 4.4 by hand, with weights and soft labels; the reference is the plain model on the plain text.

    On top, where asked for, what the chosen answer takes in nats a token; of a soft label p, 1 - p of the other's.
    """
    log = small_log(2)
    config = dpo_config(tiny, tmp_path, alpha=alpha, objective=Objective(beta=0.3, sft_weight=sft))
    trainer = trainer_for(config, log, tmp_path)
    moved(trainer)

    def nats(m: float, own: tuple[float, float], p: float) -> float:
        pair = p * math.log1p(math.exp(-m)) + (1 - p) * math.log1p(math.exp(m))
        return pair + sft * (p * own[0] + (1 - p) * own[1])

    terms = [margins_and_nats(trainer, log, config, generic) for generic in (False, True)]
    losses = [
        alpha * nats(*u, c.p_chosen) + (1 - alpha) * nats(*g, c.p_chosen)
        for u, g, c in zip(terms[0], terms[1], log, strict=True)
    ]
    expected = sum(x * c.weight for x, c in zip(losses, log, strict=True)) / sum(c.weight for c in log)
    inputs = batch_of(trainer)
    found = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=inputs["weight"].sum())
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


def test_a_reward_of_the_scorer_is_what_was_trained(tiny: str, tmp_path: Path) -> None:
    log = small_log(2)
    config = dpo_config(tiny, tmp_path, objective=Objective(beta=0.3))
    checkpoint = start(config, log)
    pairs = policy_pairs(checkpoint, log)
    trainer = build_dpo_trainer(checkpoint, pairs, pairs, config, tmp_path)
    moved(trainer)
    checkpoint.settings.objective = TrainedBy("dpo", {"beta": 0.3})
    scorer = Scorer(checkpoint)
    columns = zip(*[(c.prompt, c.chosen, c.rejected, c.user_id) for c in log], strict=True)
    margins = scorer.margin_batch(*(list(column) for column in columns))
    assert margins.tolist() == pytest.approx(by_hand(trainer, log, config, False), abs=1e-4)


LOSSES = [
    ("sigmoid", 0.0, 0.0),
    ("hinge", 0.0, 0.0),
    ("robust", 0.2, 0.0),
    ("ipo", 0.0, 0.0),
    ("sigmoid", 0.0, 0.5),
]


@pytest.mark.parametrize(("loss", "smoothing", "sft"), LOSSES)
def test_without_users_it_is_trls_own_dpo(
    backbone_of: Callable[..., str], tmp_path: Path, loss: Any, smoothing: float, sft: float
) -> None:
    """Same seed, same losses and metrics at every step, same adapters at the end.

    TRL reads texts and makes adapters itself, one pair at a time: its means over tokens are over all of a batch.
    """
    backbone = backbone_of("llama", chat=False)
    log = [replace(c, prompt=f"{c.prompt}\n") for c in opposed_people(8, 0, people=2)]
    optim = OptimConfig(epochs=2.0, batch_size=8, micro_batch_size=4, eval_steps=100, lora_lr=0.03)
    config = dpo_config(
        backbone, tmp_path, alpha=0.0, seed=3, users=UserConfig("uniform", num_virtual_tokens=0), optim=optim,
        objective=Objective(0.2, loss, smoothing, sft),
    )  # fmt: skip
    trainer = trainer_for(config, log, tmp_path / "ours")
    trainer.args.logging_steps = trainer.state.logging_steps = 1
    trainer.train()

    order = PaddedSampler(len(log), 4, 3)
    rows = []
    for epoch in range(2):
        order.set_epoch(epoch)
        rows += [{"prompt": log[i].prompt, "chosen": log[i].chosen, "rejected": log[i].rejected} for i in order]
    model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    arguments = TrlConfig(
        output_dir=str(tmp_path / "theirs"), beta=0.2, loss_type=[loss, "sft"], loss_weights=[1.0, sft],
        label_smoothing=smoothing, seed=3,
        per_device_train_batch_size=1, gradient_accumulation_steps=8, num_train_epochs=1, logging_steps=1,
        max_grad_norm=0.0, gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none", max_length=None,
        train_sampling_strategy="sequential", save_strategy="no",
    )  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    theirs: Any = DPOTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(rows), peft_config=lora,
        processing_class=AutoTokenizer.from_pretrained(backbone),
    )  # fmt: skip
    parameters = [p for p in theirs.model.parameters() if p.requires_grad]
    groups = [{"params": parameters, "lr": 0.03, "rowwise": False, "max_norm": 1.0}]
    theirs.optimizer = RowAdamW(groups, betas=(0.9, 0.98))
    theirs.lr_scheduler = LambdaLR(theirs.optimizer, lambda step: rate(step, 4, optim))
    theirs.train()

    ours, own = ([e for e in t.state.log_history if "loss" in e] for t in (trainer, theirs))
    assert len(ours) == len(own) == 4
    for step, (found_log, log_of_trl) in enumerate(zip(ours, own, strict=True)):
        names = {"loss", *METRICS} - (set() if step else {"rewards/accuracies"})  # of margins of 0, but for rounding
        for name in names:
            assert found_log[name] == pytest.approx(log_of_trl[name], rel=1e-3, abs=1e-4), name
    expected = {n.replace(".default", ""): p for n, p in theirs.model.named_parameters() if p.requires_grad}
    found = {n.removeprefix("backbone.").replace(".default", ""): p for n, p in trainer.model.named_parameters()}
    assert len(expected) == 28
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-3, atol=1e-4)
    assert sum(float(p.detach().abs().sum()) for n, p in expected.items() if "lora_B" in n) > 0.1  # they did move


SMALL: dict[str, Any] = {
    "vocab_size": 336,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
UNTRAINED = {  # with dropout of their own
    "gpt2": GPT2Config(**SMALL, bos_token_id=1, eos_token_id=1),
    "opt": OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=512, layerdrop=0.5),
    "llama": build_config("llama"),
}


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", UNTRAINED)
def test_an_untrained_policys_loss_is_log_2(
    name: str, dtype: Any, packs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training as in a look at the validation part, whatever is read with a pair, and without gradients to people.

    In bfloat16 the reference is read in the same pass: the same to the bit, whatever the rounding. In float32 it was
    read before, in other company: answers of 40 tokens then differ by less than 1e-3 nats.
    """
    if not packs:
        monkeypatch.setattr("prm.models.packing._is_supported", lambda backbone: False)
    backbone = save_random(tmp_path / "backbone", AutoModelForCausalLM, UNTRAINED[name])
    config = dpo_config(backbone, tmp_path, users=UserConfig("uniform", num_virtual_tokens=0))
    config.backbone.dtype = dtype
    log = small_log(4)
    trainer = trainer_for(config, log, tmp_path)
    pairs = list(trainer.train_dataset)[:-1]
    for start in range(0, len(pairs), 3):
        inputs = policy_collate(pairs[start : start + 3])
        trainer.model.train()
        loss, (*margins, _, _, _, _) = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
        bound = 0.0 if dtype == "bfloat16" else 1e-3 * config.objective.beta
        assert max(float(margin.detach().abs().max()) for margin in margins) <= bound
        assert float(loss.detach()) == pytest.approx(math.log(2), abs=bound + 1e-6)


def test_the_reference_is_constant_and_gets_no_user(tiny: str, tmp_path: Path) -> None:
    """While people's rows and adapters move, log pi_ref stays to the bit; a user id in its batch is refused."""
    log = [replace(c, user_text="I am a king.") for c in small_log(2)]
    checkpoint = start(dpo_config(tiny, tmp_path), log)
    before = [p.references for p in policy_pairs(checkpoint, log)]
    logged = [p.references for p in policy_pairs(checkpoint, [replace(c, user_text="") for c in log])]
    assert before == logged  # nor what people say of themselves
    encoded = [checkpoint.encoder().encode_with_plain(c.prompt, c.chosen, 1, c.user_text) for c in log]
    batch = policy_batch([plain for _, plain in encoded])
    with torch.no_grad():
        constant = checkpoint.model.reference_logps(batch)
        personal = checkpoint.model.logps(policy_batch([s for s, _ in encoded]))
        for parameter in checkpoint.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
        assert torch.equal(checkpoint.model.reference_logps(batch), constant)
        assert not torch.allclose(checkpoint.model.logps(policy_batch([s for s, _ in encoded])), personal, atol=0.1)
    trained = [n for n, p in checkpoint.model.named_parameters() if p.requires_grad]
    assert "user_model.offsets" in trained
    assert sum("lora" in name for name in trained) == 28  # switching adapters off has frozen nothing
    with pytest.raises(ValueError, match="users"):
        checkpoint.model.reference_logps(policy_batch([encoded[0][0]]))


def policy_batch(sequences: list[Any]) -> Batch:
    from prm.data.encoding import pad
    from prm.features.reference_logps import completion

    return pad([completion(s) for s in sequences])


def test_references_are_read_once(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By any run on the same backbone; what several people judged is read once."""
    log = small_log(3)
    read: list[int] = []
    plain = prm.features.reference_logps.read_reference_logps

    def counted(policy: Policy, texts: list[Any], *rest: Any) -> torch.Tensor:
        read.append(len(texts))
        return plain(policy, texts, *rest)

    monkeypatch.setattr(prm.features.reference_logps, "read_reference_logps", counted)
    first = policy_pairs(start(dpo_config(tiny, tmp_path), log), log)
    assert sum(read) == 6
    again = policy_pairs(start(dpo_config(tiny, tmp_path, users=UserConfig("cluster", num_virtual_tokens=3)), log), log)
    assert sum(read) == 6
    assert [p.references for p in again] == [p.references for p in first]


def test_accumulation_equals_one_batch_with_unequal_weights(tiny: str, tmp_path: Path) -> None:
    states, logs = [], []
    for micro in (8, 2):
        optim = OptimConfig(epochs=2.0, batch_size=8, micro_batch_size=micro, eval_steps=100)
        log = small_log(7)  # 14 pairs: the last step is filled up
        trainer = trainer_for(dpo_config(tiny, tmp_path, optim=optim), log, tmp_path / str(micro))
        trainer.train()
        states.append({k: v.clone() for k, v in trainer.model.named_parameters() if v.requires_grad})
        logs.append([entry for entry in trainer.state.log_history if METRICS[0] in entry])
    assert [len(each) for each in logs] == [1, 1]
    for name in METRICS:
        assert logs[0][0][name] == pytest.approx(logs[1][0][name], rel=1e-3, abs=1e-4), name
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-3, atol=1e-4)


def test_people_absent_from_a_step_do_not_move(tiny: str, tmp_path: Path) -> None:
    """Two steps, the second without p0: dense Adam would drag p0 along by its momentum."""
    log = opposed_people(4, 0, people=2)
    trainer = trainer_for(dpo_config(tiny, tmp_path), log, tmp_path)
    table = trainer.model.user_model.offsets
    inputs = batch_of(trainer)
    seen = []
    for keep in (range(8), range(1, 8, 2)):
        rows = torch.tensor([*keep, *(8 + i for i in keep)])
        part = {k: v[rows] if len(v) == 16 else v[torch.tensor(list(keep))] for k, v in inputs.items()}
        trainer.compute_loss(trainer.model.train(), part).backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        seen.append(table.detach().clone())
    assert seen[0][1:].abs().amin((1, 2)).gt(0).all()
    assert torch.equal(seen[1][1], seen[0][1])
    assert not torch.equal(seen[1][2], seen[0][2])
    assert not table[0].any()  # the unknown user has no offset


@pytest.mark.parametrize(
    ("kind", "tokens", "alpha", "terms"),
    [("individual", 2, 0.0, 1), ("individual", 2, 0.5, 2), ("individual", 2, 1.0, 1), ("uniform", 2, 0.5, 1)],
)
def test_a_term_of_weight_0_is_not_computed(
    tiny: str, tmp_path: Path, kind: Any, tokens: int, alpha: float, terms: int
) -> None:
    config, log = (
        dpo_config(tiny, tmp_path, alpha=alpha, users=UserConfig(kind, num_virtual_tokens=tokens)),
        small_log(2),
    )
    trainer = trainer_for(config, log, tmp_path)
    read: list[torch.Tensor] = []
    trainer.model.register_forward_pre_hook(lambda m, a, k: read.append(k["input_ids"]), with_kwargs=True)
    inputs = batch_of(trainer)
    trainer.compute_loss(trainer.model.train(), inputs)
    generic = to_generic(inputs["input_ids"], trainer.model.vocab_size, tokens)
    expected = [generic] if terms == 1 and alpha != 1.0 else [inputs["input_ids"], generic][:terms]
    assert torch.equal(torch.cat(read), torch.cat(expected))


def logged(trainer: Any) -> dict[str, float]:
    """What training has to log since the last time."""
    trainer.log({"loss": 0.0})
    return {name: trainer.state.log_history[-1][name] for name in METRICS}


def test_what_is_logged_is_of_the_users_and_the_labels_as_given(tiny: str, tmp_path: Path) -> None:
    """Weighted means over all pairs since the last log, whatever the batches; a filled-up batch adds nothing."""
    log = small_log(4)
    config = dpo_config(tiny, tmp_path)
    trainer = trainer_for(config, log, tmp_path)
    moved(trainer)
    trainer.model.train()
    whole = batch_of(trainer)
    margins, weights = by_hand(trainer, log, config, False), [c.weight for c in log]
    rows = PaddedDataset(trainer.train_dataset)
    thirds = [policy_collate([rows[i] for i in part]) for part in ((0, 1, 2), (3, 4, 5), (6, 7, 8))]
    assert thirds[-1]["weight"].tolist()[-1] == 0.0
    seen = []
    for batches in ([whole], thirds):
        for inputs in batches:
            trainer.compute_loss(trainer.model, inputs)
        seen.append(logged(trainer))
    assert seen[0]["rewards/margins"] == pytest.approx(np.average(margins, weights=weights), abs=1e-3)
    assert seen[0]["rewards/accuracies"] == pytest.approx(np.average(np.array(margins) > 0, weights=weights))
    for name in METRICS:
        assert seen[0][name] == pytest.approx(seen[1][name], rel=1e-4, abs=1e-5), name


def test_an_evaluation_tells_the_metrics_of_its_part(tiny: str, tmp_path: Path) -> None:
    """Of all its pairs by their weights, and it leaves the sums of training alone."""
    log = small_log(4)
    config = dpo_config(tiny, tmp_path, optim=OptimConfig(batch_size=3, micro_batch_size=3))
    trainer = trainer_for(config, log, tmp_path)
    moved(trainer)
    inputs = batch_of(trainer)
    trainer.compute_loss(trainer.model, inputs)
    found = trainer.evaluate()
    for name, value in logged(trainer).items():  # the same pairs
        assert found[f"eval_{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_prompt_read_once_gives_the_loss_gradients_and_log_of_two_readings(
    tiny: str, tmp_path: Path, alpha: float, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that TRL's fused head tells of whole sequences."""
    log = [replace(c, user_text="reads a lot" if i % 3 else "") for i, c in enumerate(small_log(4))]
    optim = OptimConfig(gradient_checkpointing=checkpointing)
    trainer = trainer_for(dpo_config(tiny, tmp_path, alpha=alpha, optim=optim), log, tmp_path)
    moved(trainer)
    trainer.model.train()
    inputs, read = batch_of(trainer), count_tokens(trainer.model.backbone)

    def step() -> tuple[dict[str, torch.Tensor], dict[str, float], int]:
        trainer.model.zero_grad()
        read.clear()
        loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=inputs["weight"].sum())
        tokens = sum(read)
        loss.backward()
        grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach()} | grads, logged(trainer), tokens

    found, noted, tokens = step()
    with monkeypatch.context() as patch:
        patch.setattr("prm.models.policy_model.can_pack", lambda backbone: False)
        expected, noted_apart, whole = step()
    assert farthest(found, expected) < rounding(GRADIENT)
    for name, value in noted_apart.items():
        assert noted[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert tokens < 0.7 * whole


KINDS = {
    "individual": UserConfig("individual", num_virtual_tokens=2),
    "separate": UserConfig("individual", num_virtual_tokens=2, generic=False),
    "cluster": UserConfig("cluster", num_virtual_tokens=2, clusters=2),
    "softmax": UserConfig("cluster", num_virtual_tokens=1, clusters=3, softmax=True),
    "uniform": UserConfig("uniform", num_virtual_tokens=2),
}


@pytest.mark.parametrize("name", KINDS)
def test_opposed_people_move_apart(tiny: str, tmp_path: Path, name: str) -> None:
    """All user models; whoever knows nobody is right exactly half the time."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(40, 0))
    optim = OptimConfig(
        epochs=6.0, batch_size=8, micro_batch_size=8, eval_steps=500, early_stopping_patience=99, lora_lr=6e-3
    )
    optim.user_lr = 0.1 if KINDS[name].kind == "cluster" else 0.05
    if name == "uniform":
        optim.epochs = 1.0
    run = train_dpo(dpo_config(tiny, tmp_path, users=KINDS[name], optim=optim))
    result = evaluate(Scorer.from_pretrained(run), opposed_people(20, 1))
    accuracy = result.row("personal").accuracy.value
    if name == "uniform":
        assert accuracy == 0.5
    else:
        assert accuracy > 0.7
        assert result.row("generic user").accuracy.value == 0.5


def test_a_run_is_evaluated_like_any_other(trained: Path) -> None:
    """Accuracy by person, for strangers too, beside the controls, on the held-out part."""
    held_out = [json.loads(line) for line in (trained / "test.jsonl").read_text().splitlines()]
    log = [Comparison(r["user_id"], r["prompt"], r["chosen"], r["rejected"]) for r in held_out]
    assert len(log) == 20
    result = evaluate_run(trained, [*log, replace(log[0], user_id="stranger")])
    personal = result.row("personal")
    assert personal.top is not None
    assert personal.top.value > 0.7
    assert personal.generic is not None
    assert result.unknown_users == 1
    assert set(result.per_user) == {"p0", "p1", "p2", "p3", "stranger"}
    assert {row.name for row in result.rows} >= {"users shuffled", "longest answer", "length sign per user"}
    assert result.row("users shuffled").accuracy.value < personal.accuracy.value
    assert result.parameters == {"users": 5 * 2 * 32, "shared": lora_numbers()}


def lora_numbers() -> int:
    """Rank 8 on q, k, v, o, gate, up and down of two layers, (in + out) * 8 each."""
    shapes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    return 2 * sum(8 * (a + b) for a, b in shapes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"users": UserConfig("bayes")}, "users.kind"),
        ({"users": UserConfig("uniform", num_virtual_tokens=0), "train": "frozen"}, "train"),
    ],
)
def test_settings_that_make_no_sense_are_named(tiny: str, tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    write_jsonl(tmp_path / "log.jsonl", opposed_people(4, 0, people=2))
    with pytest.raises(PrmError, match=f"config key '{key}'"):
        train_dpo(dpo_config(tiny, tmp_path, **changes))


def test_what_cannot_be_learnt_from_is_refused(tiny: str, tmp_path: Path) -> None:
    config = dpo_config(tiny, tmp_path)
    with pytest.raises(PrmError, match=r"backbone\.layers"):
        train_dpo(replace(config, backbone=replace(config.backbone, layers=1)))
    rows = opposed_people(4, 0, people=2)
    long = replace(rows[0], chosen="king " * 300, rejected="fox " * 300)
    write_jsonl(tmp_path / "log.jsonl", [long] * 3 + rows)
    with pytest.raises(DataError, match="max_length"):
        train_dpo(replace(config, backbone=replace(config.backbone, max_length=64)))
    assert not list(tmp_path.glob("run*"))  # nothing stands in the way of the mended command


def test_a_reward_model_does_not_go_on_from_a_policy(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(PrmError, match="policy"):
        train(TrainConfig(output_dir=str(tmp_path / "run"), start_from=str(trained)))


@pytest.mark.parametrize(("architecture", "dtype"), [("gpt_neox", "bfloat16"), ("qwen2", "float32")])
def test_other_architectures_and_bfloat16_train_save_and_score(
    backbone_of: Callable[..., str], tmp_path: Path, architecture: str, dtype: Any
) -> None:
    """With recomputed activations, too; what trains and every reward is float32."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(8, 0, people=2))
    config = dpo_config(backbone_of(architecture), tmp_path)
    optim = replace(config.optim, gradient_checkpointing=True)
    run = train_dpo(replace(config, optim=optim, backbone=replace(config.backbone, dtype=dtype)))
    assert list((run / "logs").glob("events*"))  # TensorBoard
    scorer = Scorer.from_pretrained(run, device="cpu")
    assert next(scorer.model.backbone.parameters()).dtype == getattr(torch, dtype)
    trained = [p for n, p in scorer.model.named_parameters() if "lora" in n or not n.startswith("backbone.")]
    assert {p.dtype for p in trained} == {torch.float32}
    rewards = scorer.score("what?", ["a king", "the fox"], "p0")
    assert rewards.dtype == torch.float32
    assert rewards.abs().min() > 0  # both learnt something
    assert torch.equal(Scorer.from_pretrained(run, device="cpu").score("what?", ["a king", "the fox"], "p0"), rewards)


def test_the_output_head_is_not_adapted(tiny: str, tmp_path: Path) -> None:
    """TRL multiplies by its weights directly; an adapter there would never be trained."""
    checkpoint = start(dpo_config(tiny, tmp_path), small_log(1))
    adapted = [name for name, _ in checkpoint.model.named_modules() if name.endswith(".lora_A")]
    assert len(adapted) == 14
    assert not [name for name in adapted if "lm_head" in name]
