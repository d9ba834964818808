"""What people say of themselves in runs of linear heads: read before the prompt, or left unread for good."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prm.checkpoint.config_file import read_config
from prm.config import DataConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.errors import CheckpointError
from prm.io.tables import write_jsonl
from prm.scoring.scorer import Scorer
from prm.training.run import train
from tests.conftest import resign
from tests.planted import opposed_people
from tests.tiny_runs import config_of

LOG = opposed_people(12, 0)
ASKED = (LOG[0].prompt, [LOG[0].chosen, LOG[0].rejected])
TOLD = [replace(c, user_text=f"{c.user_id} likes an old {'king' if i % 3 else 'fox'}") for i, c in enumerate(LOG)]
KINDS = ("bayes", "individual")


def trained(folder: Path, backbone: str, log: list[Comparison], kind: str, dropout: float) -> Path:
    folder.mkdir()
    write_jsonl(folder / "log.jsonl", log)
    config = config_of("bayes", backbone, folder)
    assert isinstance(config, TrainConfig)
    return train(replace(config, users=UserConfig(kind, rank=4, text_dropout=dropout)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_left_unread_change_nothing(tiny: str, tmp_path: Path, kind: str) -> None:
    """Neither in training nor in scoring, of either model, nor where the run goes on."""
    told = trained(tmp_path / "told", tiny, TOLD, kind, 1.0)
    silent = trained(tmp_path / "silent", tiny, LOG, kind, 1.0)
    for run, other in ((told, silent), (told / "uniform", silent / "uniform")):
        assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
        assert read_config(run).settings.user_text == "unread"
        scorer = Scorer.from_pretrained(run)
        for user in (None, "p0"):
            assert torch.equal(scorer.score(*ASKED, user, "an old king"), scorer.score(*ASKED, user))
    after = []
    for name, log in (("more told", TOLD), ("more silent", LOG)):
        write_jsonl(tmp_path / f"{name}.jsonl", [replace(c, user_id=f"new {c.user_id}") for c in log])
        data = DataConfig(str(tmp_path / f"{name}.jsonl"))
        after.append(train(TrainConfig(str(tmp_path / name), start_from=str(told), data=data)))
    assert (after[0] / "model.safetensors").read_bytes() == (after[1] / "model.safetensors").read_bytes()
    assert read_config(after[0]).settings.user_text == "unread"


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_read_before_the_prompt(tiny: str, tmp_path: Path, kind: str) -> None:
    run = trained(tmp_path / "run", tiny, TOLD, kind, 0.3)
    for folder in (run, run / "uniform"):
        scorer = Scorer.from_pretrained(folder)
        assert not torch.allclose(scorer.score(*ASKED, "p0", "an old king"), scorer.score(*ASKED, "p0"), atol=1e-4)


def test_a_run_whose_texts_set_priors_is_refused(backbone_of: Callable[..., str], tmp_path: Path) -> None:
    """As earlier versions saved them."""
    run = trained(tmp_path / "now", backbone_of("llama"), LOG, "bayes", 1.0)
    earlier = tmp_path / "earlier"
    shutil.copytree(run, earlier)
    config = json.loads((earlier / "config.json").read_text()) | {"user_text": "prior"}
    (earlier / "config.json").write_text(json.dumps(config))
    resign(earlier)
    with pytest.raises(CheckpointError, match=r"config\.json: users' texts set their priors .* Train it again"):
        Scorer.from_pretrained(earlier)
