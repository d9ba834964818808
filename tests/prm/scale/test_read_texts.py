"""How a group's texts are cut into tasks."""

import numpy as np
import pytest

from prm.scale.read_texts import cuts


@pytest.mark.parametrize(
    ("prompts", "keys", "pairs", "expected"),
    [
        ([0, 3, 5], [0, 2, 3, 5, 6], 8, [0, 3, 5, 8]),  # before a prompt
        ([0], [0, 2, 6], 7, [0, 2, 6, 7]),  # within a long one before a text
        ([0, 9], [0, 9], 10, [0, 9, 10]),  # a text of nine users stays whole
        ([0], [0], 9, [0, 9]),
        ([0, 4], [0, 4], 8, [0, 4, 8]),
        ([0], [0, 1, 2, 3], 4, [0, 4]),
        ([], [], 0, [0]),
    ],
)
def test_cuts_by_hand(prompts: list[int], keys: list[int], pairs: int, expected: list[int]) -> None:
    """Tasks of four pairs."""
    assert cuts(np.array(prompts, np.intp), np.array(keys, np.intp), pairs, 4) == expected
