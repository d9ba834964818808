"""What a model says of itself is tried out before answers are drawn."""

from pathlib import Path

import pytest
import torch

from prm.errors import PrmError
from rerank.sampling.cache_check import shares_prompts
from rerank.sampling.sampler import Sampler
from rerank.sampling.shared_prefix_cache import can_share
from tests.architectures import save_family


def sampler_of(name: str, folder: Path) -> Sampler:
    return Sampler.from_pretrained(save_family(name, folder), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("name", "shares"), [("Llama", True), ("Nemotron", False), ("DeepSeek-V3", False)])
def test_prompts_are_shared_where_that_gives_the_same_and_copied_elsewhere(
    tmp_path: Path, name: str, shares: bool
) -> None:
    """Nemotron hands nothing on to its attention, DeepSeek keeps something else than keys and values."""
    model = sampler_of(name, tmp_path).model
    assert can_share(model)
    assert shares_prompts(model) == shares


@pytest.mark.parametrize("name", ["GPT", "RWKV"])  # no cache, and one that goes by another name
def test_a_model_that_cannot_go_on_from_what_it_has_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PrmError, match="sampled"):
        sampler_of(name, tmp_path)
