"""The table of `docs/architectures.md` is what comes out."""

from pathlib import Path

import pytest
from transformers import AutoModel, BertConfig

from prm.errors import PrmError
from prm.models.backbones import load_backbone
from tests.architectures import FAMILIES, PAGE, examine, save_family, table
from tests.conftest import save_random


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_works_as_its_row_says(tmp_path: Path, name: str) -> None:
    """Trained as linear heads, soft prompt and policy, scored in any batch, sampled from."""
    found = examine(save_family(name, tmp_path / "backbone"), tmp_path)
    found = {column: said.replace(str(tmp_path / "backbone"), "BACKBONE") for column, said in found.items()}
    header, _, row = table({name: found}).splitlines()
    page = PAGE.read_text(encoding="utf-8").splitlines()
    assert header in page
    assert row in page


def test_the_page_has_a_row_for_each_family() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) - 2 == len(FAMILIES) >= 16


def test_a_model_that_reads_both_ways_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=336, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    with pytest.raises(PrmError, match="BertModel"):
        load_backbone(save_random(tmp_path, AutoModel, config))
