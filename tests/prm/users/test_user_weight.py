"""The weight of a user's own part: by hand, near 0 where such parts predict nothing, and by number of comparisons."""

import math

import pytest
import torch

from prm.users.user_weight import OCTAVES, HeldOut, fit_weights, weight_at


def held_out(right: torch.Tensor, rows: torch.Tensor, count: int = 1, added: float = 1.0) -> HeldOut:
    """Comparisons that the population cannot decide, and of which each user's own part says `added`."""
    n = len(right)
    return HeldOut(torch.zeros(n), torch.full((n,), added), torch.full((n,), count), rows, right.float(), torch.ones(n))


def test_a_weight_by_hand() -> None:
    """400 people, one comparison each, 280 right; the log odds of .7 are .847, and w is little less."""
    right = torch.arange(400) < 280
    # w solves 400 (.7 - s(w)) = w
    low, high = 0.0, 1.0
    for _ in range(60):
        w = (low + high) / 2
        low, high = (w, high) if 400 * (0.7 - 1 / (1 + math.exp(-w))) > w else (low, w)
    p = 1 / (1 + math.exp(-w))
    information = 400 * p * (1 - p) + 1.0
    clustered = 280 * (1 - p) ** 2 + 120 * p**2
    lower = w - 1.96594 * math.sqrt(max(clustered, information)) / information  # Student's t, 399 degrees of freedom
    assert lower == pytest.approx(0.624, abs=0.001)
    assert float(fit_weights(held_out(right, torch.arange(400)))[0]) == pytest.approx(lower, abs=1e-5)


def test_few_people_say_less_than_many() -> None:
    """The same comparisons of fewer people, of whom 70% are always right: the variance counts people."""
    right = torch.arange(400) < 280
    found = [float(fit_weights(held_out(right, torch.arange(400) // n))[0]) for n in (1, 10, 40, 400)]
    w = 0.8372  # as above; p is .6979
    error = math.sqrt(28 * (10 * 0.3021) ** 2 + 12 * (10 * 0.6979) ** 2) / 85.33
    assert found[1] == pytest.approx(w - 2.02269 * error, abs=2e-3)  # 39 degrees of freedom
    assert found[0] > found[1] > 0.0
    assert found[2:] == [0.0, 0.0]  # ten people, and one: nothing is sure


def test_what_predicts_nothing_has_no_weight() -> None:
    """Over 40 draws: one in forty has a weight above 0 by chance, and those that are always wrong have none."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(40):
        right = torch.rand(1000, generator=draw) < 0.5
        found.append(float(fit_weights(held_out(right, torch.arange(1000) // 5))[0]))
    assert sum(weight > 0.0 for weight in found) <= 3
    assert max(found) < 0.1
    assert not fit_weights(held_out(torch.zeros(100, dtype=torch.bool), torch.arange(100))).any()
    assert not fit_weights(held_out(torch.ones(100), torch.arange(100), count=0)).any()  # of nobody anything is known


def test_a_single_comparison_teaches_next_to_nothing() -> None:
    assert not fit_weights(held_out(torch.ones(1), torch.zeros(1, dtype=torch.long), added=3.0)).any()


def test_weights_follow_the_number_of_comparisons() -> None:
    """People with 2 comparisons are predicted by chance, those with 64 well: each number has a weight of its own."""
    draw = torch.Generator().manual_seed(1)
    chance = held_out(torch.rand(3000, generator=draw) < 0.5, torch.arange(3000) // 4, count=2)
    good = held_out(torch.rand(3000, generator=draw) < 0.72, 1000 + torch.arange(3000) // 4, count=64)
    both = HeldOut(
        *(torch.cat([getattr(part, name) for part in (chance, good)]) for name in chance.__dataclass_fields__)
    )
    weights = fit_weights(both)
    assert float(weights[1]) < 0.1
    assert float(weights[6]) > 0.7
    assert weights[6:].tolist() == [float(weights[6])] * (OCTAVES - 6)


def test_between_powers_of_two_weights_are_linear_in_the_logarithm() -> None:
    weights = torch.zeros(OCTAVES)
    weights[0] = 0.1
    weights[2:] = torch.linspace(0.2, 1.0, OCTAVES - 2)
    weights[3] = 0.6
    counts = torch.tensor([0, 1, 4, 8, 6, 2**30])
    between = 0.2 + 0.4 * math.log2(1.5)
    torch.testing.assert_close(weight_at(weights, counts), torch.tensor([0.0, 0.1, 0.2, 0.6, between, 1.0]))
