"""What comes from others is loaded whole or not at all: no weights made up, no head lost, no code run."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prm.errors import PrmError
from prm.models.backbone_paths import is_out_of_reach
from prm.models.backbones import is_reward_model, load_backbone, load_causal_lm, load_reward_model, load_tokenizer
from prm.models.loading import load_tokenizer_of
from tests.architectures import FAMILIES
from tests.conftest import build_config, save_random
from tests.endpoint_server import FakeEndpoint, choices

State = dict[str, Tensor]
SHARDS = "model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A language model whose output head is a matrix of its own, one whose is not, and a reward model."""
    home, untied, reward = tmp_path_factory.mktemp("models"), build_config("llama"), build_config("llama")
    untied.tie_word_embeddings, reward.num_labels = False, 1
    save_random(home / "untied", AutoModelForCausalLM, untied)
    save_random(home / "tied", AutoModelForCausalLM, build_config("qwen2"))
    save_random(
        home / "renamed", AutoModelForCausalLM, build_config("gpt_neox")
    )  # its file has another name for a head
    save_random(home / "reward", AutoModelForSequenceClassification, reward)
    return {path.name: path for path in home.iterdir()}


def changed(folder: Path, target: Path, change: Callable[[State], State] | None = None, **config: Any) -> str:
    """A copy of a model whose weights, and settings in `config.json`, are others."""
    shutil.copytree(folder, target)
    if change is not None:
        save_file(change(load_file(target / SHARDS)), target / SHARDS, metadata={"format": "pt"})
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return str(target)


def without(*parts: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if not any(part in k for part in parts)}


def plus(**tensors: Tensor) -> Callable[[State], State]:
    return lambda state: state | {k.replace("__", "."): v for k, v in tensors.items()}


def renamed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + k: v for k, v in state.items()}


def test_what_is_whole_is_loaded_with_the_numbers_of_its_file(folders: dict[str, Path]) -> None:
    """Each weight of each class; a language model's output head is left out on purpose where states are read."""
    for name in ("untied", "tied", "reward"):
        state = load_file(folders[name] / SHARDS)
        for found in (
            (load_backbone if name != "reward" else lambda x: load_reward_model(x)[0])(str(folders[name]))
            .state_dict()
            .items()
        ):
            assert torch.equal(found[1], state[f"model.{found[0]}"]), found[0]
    load_backbone(str(folders["renamed"])), load_causal_lm(str(folders["renamed"]))
    head = load_reward_model(str(folders["reward"]))[1]
    assert torch.equal(head.weight, load_file(folders["reward"] / SHARDS)["score.weight"])
    speaks: Any = load_causal_lm(str(folders["tied"]))
    assert speaks.lm_head.weight.data_ptr() == speaks.get_input_embeddings().weight.data_ptr()


def test_what_a_class_of_transformers_ignores_is_no_fault(folders: dict[str, Path], tmp_path: Path) -> None:
    """Buffers that old versions saved."""
    folder = changed(
        folders["untied"], tmp_path / "m", plus(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    )
    load_backbone(folder), load_causal_lm(folder)


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the cache is read, without the hub's own retries; neither a folder nor offline mode asks at all."""
    asked = []

    def no_network(host: object, *args: object, **kwargs: object) -> None:
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)  # it asks once more, by itself
    for offline, name, times in ((False, "somebody/model", 1), (True, "somebody/model", 0), (False, str(tmp_path), 0)):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        asked.clear()
        with pytest.raises(PrmError, match=f"^backbone {name} cannot be loaded: ") as raised:
            load_tokenizer_of(name, f"backbone {name}")
        assert (len(asked), "\n" in str(raised.value)) == (times, False)


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it answers: here that it knows no HEAD."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with FakeEndpoint(lambda body, number: choices([])) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        assert not is_out_of_reach("somebody/model")
    assert is_out_of_reach("somebody/model")


SCORES = torch.ones(1, 32)
FAULTS: dict[str, tuple[str, Callable[[State], State], tuple[str, ...]]] = {
    "a layer": ("untied", without("layers.1."), ("9 weights of Llama", "layers.1.", "and 6 more")),
    "one weight": ("untied", without("norm.weight"), ("5 weights of Llama", "layers.0.input_layernorm.weight")),
    "another prefix": (
        "untied",
        renamed("module."),
        ("20 weights of LlamaModel are missing", "have no place", "module."),
    ),
    "no embedding": ("untied", without("embed_tokens"), ("1 weights of LlamaModel are missing (embed_tokens.weight)",)),
    "other shapes": (
        "untied",
        lambda s: s | {"model.norm.weight": torch.ones(48)},
        ("1 weights do not fit LlamaModel", "norm.weight is [48], not [32]"),
    ),
    "a layer too many": (
        "untied",
        lambda s: s | {f"model.layers.2.{n}": SCORES.clone() for n in "ab"},
        ("layers.2.a",),
    ),
    "a reward head": (
        "untied",
        plus(score__weight=SCORES),
        ("1 weights have no place", "score.weight", "would be lost"),
    ),
    "a head beside one": ("renamed", plus(v_head__weight=SCORES), ("1 weights have no place", "v_head.weight")),
    "a value head": ("tied", plus(v_head__summary__weight=SCORES), ("v_head.summary.weight",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_missing_or_left_over_are_named(folders: dict[str, Path], tmp_path: Path, fault: str) -> None:
    name, change, said = FAULTS[fault]
    folder = changed(folders[name], tmp_path / "m", change)
    with pytest.raises(PrmError) as raised:
        load_backbone(folder)
    assert str(raised.value).startswith(f"backbone {folder!r} is not what its config.json says")
    for words in said:
        assert words in str(raised.value)
    with pytest.raises(PrmError):
        load_causal_lm(folder)


@pytest.mark.parametrize(
    ("name", "change", "load", "missing"),
    [
        ("reward", without("score"), load_reward_model, "score.weight"),
        ("reward", lambda s: s | {"score.weight": torch.ones(1, 16)}, load_reward_model, "score.weight is [1, 16]"),
        ("reward", plus(score2__weight=SCORES), load_reward_model, "score2.weight"),
        ("reward", without("layers.0."), load_reward_model, "model.layers.0."),
        ("untied", without("lm_head"), load_causal_lm, "lm_head.weight"),
        ("untied", lambda s: s | {"lm_head.weight": torch.ones(9, 32)}, load_causal_lm, "lm_head.weight is [9, 32]"),
    ],
)
def test_heads_come_from_the_file(
    folders: dict[str, Path], tmp_path: Path, name: str, change: Any, load: Callable[[str], Any], missing: str
) -> None:
    folder = changed(folders[name], tmp_path / "m", change)
    with pytest.raises(PrmError) as raised:
        load(folder)
    assert missing in str(raised.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(folders: dict[str, Path], tmp_path: Path, number: float) -> None:
    """Of a head, nothing else would notice before the optimiser; of a layer, the dtype would be blamed."""
    cases = (("untied", "layers.1.mlp.up_proj.weight", (load_backbone, load_causal_lm)),)
    for name, weight, loads in (*cases, ("reward", "score.weight", (load_reward_model,))):

        def change(state: State, weight: str = weight) -> State:
            key = next(key for key in state if key.endswith(weight))
            state[key].view(-1)[3] = number
            return state

        folder = changed(folders[name], tmp_path / name, change)
        for load in loads:
            with pytest.raises(PrmError) as raised:
                load(folder)
            assert folder in str(raised.value)
            assert weight in str(raised.value)


def cut_short(folder: Path) -> None:
    (folder / SHARDS).write_bytes((folder / SHARDS).read_bytes()[:-40])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / SHARDS), folder / "pytorch_model.bin")
    (folder / SHARDS).unlink()


def settings_of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen2", "hidden_size": "wide"}')


def no_words(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()  # its class would begin with none, and read every text as empty


@pytest.mark.parametrize(
    ("damage", "load"),
    [
        *(
            (damage, load)
            for damage in (cut_short, pickled, settings_of_another_kind)
            for load in (load_backbone, load_causal_lm)
        ),
        (no_words, load_tokenizer),
        (settings_of_another_kind, load_tokenizer),
    ],
)
def test_damaged_files_are_one_line(
    folders: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None], load: Callable[[str], Any]
) -> None:
    folder = changed(folders["tied"], tmp_path / "m")
    damage(Path(folder))
    with pytest.raises(PrmError) as raised:
        load(folder)
    assert str(raised.value).startswith(f"backbone {folder!r}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["LlamaForRewardModel", "LlamaRewardModel", "LlamaForTokenClassification"])
def test_a_class_with_a_head_of_its_own_is_named(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Its head may be saved under the names of another one, or apart; nothing of it is a language model's."""
    for change in (plus(score__weight=SCORES), None):
        folder = changed(folders["untied"], tmp_path / f"m{change is None}", change, architectures=[name])
        for load in (load_backbone, load_causal_lm):
            if change is None and "Token" in name:
                continue
            with pytest.raises(PrmError, match=name):
                load(folder)


def test_a_head_in_a_file_of_its_own_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["untied"], tmp_path / "m")
    save_file({"v_head.summary.weight": SCORES}, Path(folder) / "value_head.safetensors")
    with pytest.raises(PrmError, match=r"value_head\.safetensors"):
        load_backbone(folder)


def test_an_adapter_beside_a_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers would put it on, whatever of it is there."""
    from peft import LoraConfig, get_peft_model

    folder = changed(folders["untied"], tmp_path / "m")
    get_peft_model(load_causal_lm(folder), LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
    for load in (load_backbone, load_causal_lm):
        with pytest.raises(PrmError, match="adapter"):
            load(folder)


CODE = "import pathlib\npathlib.Path({marker!r}).write_text('ran')\n"


@pytest.mark.parametrize("load", [load_backbone, load_causal_lm, load_tokenizer, is_reward_model])
@pytest.mark.parametrize("known", [True, False])
def test_remote_code_is_never_run_nor_asked_about(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[str], Any], known: bool
) -> None:
    """Of a model that transformers knows itself, and of one that only the code in its folder knows."""
    marker, asked = tmp_path / "ran", list[str]()
    kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer")
    code = {kind: ["theirs.T", None] if kind == "AutoTokenizer" else "theirs.T" for kind in kinds}
    other: dict[str, Any] = {} if known else {"model_type": "theirs"}
    folder = Path(changed(folders["tied"], tmp_path / "m", auto_map=code, **other))
    (folder / "theirs.py").write_text(CODE.format(marker=str(marker)))
    path = folder / "tokenizer_config.json"
    theirs = {} if known else {"tokenizer_class": "Theirs"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": code} | theirs))
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "yes")
    with nullcontext() if known else pytest.raises(PrmError, match=r"^backbone "):
        load(str(folder))
    assert (asked, marker.exists()) == ([], False)


def test_remote_code_is_not_run_for_a_class_that_a_known_kind_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings are of a kind that transformers knows; it has no such head for that kind, and the folder does."""
    marker, asked = tmp_path / "ran", list[str]()
    folder = Path(save_random(tmp_path / "m", AutoModelForCausalLM, FAMILIES["Mamba"]))
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModelForSequenceClassification": "theirs.T"}})
    )
    (folder / "theirs.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "yes")
    with pytest.raises(PrmError, match="loaded"):
        load_reward_model(str(folder))
    assert (asked, marker.exists()) == ([], False)
