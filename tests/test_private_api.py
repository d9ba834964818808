"""What the packages use of others that is private there: all of it is listed here, for the versions it was read in."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest
import torch

from tests.paths import ROOT

# a new version fails the test below: read whether each name still does what the file beside it relies on, then pin it
READ_IN = {"torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2", "accelerate": "1.15.0"}
OTHERS = tuple(READ_IN)
USED: dict[str, set[str]] = {
    "policy.dpo.PersonalizedDPOTrainer": {"_precompute_ref_logps"},
    "policy.online.trainers.OnlineTrainer": {
        "_generate_and_score_completions",
        "_get_per_token_logps_and_entropies",
        "_tokenize_prompts",
    },
    "policy.online.trainers.PersonalizedGRPOTrainer": {
        "_compute_loss",
        "_generate_and_score_completions",
        "_generate_single_turn",
    },
    "policy.online.trainers.PersonalizedRLOOTrainer": {
        "_compute_loss",
        "_generate_single_turn",
        "_get_per_token_logps_and_entropies",
    },
    "prm.training.trainers.python_trainer.PythonTrainer": {
        "_clip_grad_norm",
        "_load_from_checkpoint",
        "_prepare_dataset",
    },
    "prm.training.trainers.step_trainer.StateTrainer": {
        "_issue_warnings_after_load",
        "_load_best_model",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_save",
        "_save_checkpoint",
        "_save_optimizer_and_scheduler",
    },
    "prm.training.trainers.step_trainer.StepTrainer": {
        "_get_dataloader",
        "_get_num_items_in_batch",
        "_get_train_sampler",
        "_prepare_inputs",
    },
}
ATEN = {"_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"}
MODULES = (
    "prm.training.trainers.step_trainer",
    "prm.training.trainers.python_trainer",
    "prm.training.trainers.reward_trainer",
    "prm.models.policy_model",
    "prm.models.reward_model",
    "prm.models.user_token_embedding",
    "policy.dpo",
    "policy.sft",
    "policy.online.trainers",
    "rerank.sampling.shared_prefix_cache",
)


def foreign(owner: type, name: str) -> bool:
    """Whether a class of somebody else has it, among the bases or, for a mixin, among those it is mixed in with."""
    family = [owner, *owner.__subclasses__()]
    bases = {base for one in family for base in one.__mro__}
    return any(name in vars(base) for base in bases if base.__module__.split(".")[0] in OTHERS)


def private_uses() -> Iterator[tuple[str, str]]:
    """(class of ours, private name of a foreign base that it overrides or reads)."""
    modules = {name: import_module(name) for name in MODULES}  # all of them first: they subclass one another
    for module_name, module in modules.items():
        tree = ast.parse(inspect.getsource(module))
        for node in tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            owner: type[Any] = getattr(module, node.name)
            names = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
            names |= {
                child.attr
                for child in ast.walk(node)
                if isinstance(child, ast.Attribute) and ast.unparse(child.value) in ("self", "super()")
            }
            for name in names:
                if re.match(r"_[a-z]", name) and foreign(owner, name):
                    yield f"{module_name}.{node.name}", name


def test_every_private_name_is_listed() -> None:
    found: dict[str, set[str]] = {}
    for owner, name in private_uses():
        found.setdefault(owner, set()).add(name)
    assert found == USED


def test_kernels_of_torch_are_listed() -> None:
    text = "\n".join(
        f.read_text(encoding="utf-8") for p in ("prm", "rerank", "policy") for f in (ROOT / p).rglob("*.py")
    )
    assert set(re.findall(r"torch\.ops\.aten\.(\w+)", text)) == ATEN
    assert all(hasattr(torch.ops.aten, name) for name in ATEN)
    assert not re.findall(r"\btorch\._\w+", text)


@pytest.mark.parametrize("package", OTHERS)
def test_private_names_were_read_in_the_installed_version(package: str) -> None:
    assert version(package).split("+")[0] == READ_IN[package]
