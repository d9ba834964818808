"""Those who agreed before foretell a person where tastes differ, and nowhere else."""

import numpy as np

from prm.data.profile.collaborative import _predict, find_neighbours
from prm.data.profile.heterogeneity import Votes, find_dissent
from tests.planted import opposed_people
from tests.prm.data.profile.logs import described, many


def test_neighbours_of_two_camps() -> None:
    """Two against two: whoever agreed before agrees again; the majority of the others is always wrong, a coin half."""
    near = described(opposed_people(20, 0)).differences.neighbours
    assert near is not None
    assert (near.people, near.votes, near.alike, near.personal) == (4, 80, 0.5, 1.0)
    assert (near.gain.value, near.gain.low, near.gain.high) == (0.5, 0.5, 0.5)


def test_neighbours_of_people_who_all_agree() -> None:
    near = described([c for user in "abc" for c in many(user, 20)]).differences.neighbours
    assert near is not None
    assert (near.alike, near.personal, near.gain.value) == (1.0, 1.0, 0.0)


def test_careless_people_dissent_but_have_no_neighbours() -> None:
    """A third answers at random: they go against the majority again and again, and nobody foretells them."""
    draw = np.random.default_rng(0)
    quality = np.repeat(draw.normal(0, 1.5, 300)[None], 60, axis=0)
    quality[:20] = 0.0
    answers = np.where(draw.random((60, 300)) < 1 / (1 + np.exp(-quality)), 1, -1)
    person, pair = np.nonzero(draw.random((60, 300)) < 0.4)
    votes = Votes(person, pair, answers[person, pair], 2 * pair, 2 * pair + 1)
    dissent, near = find_dissent(votes), find_neighbours(votes)
    assert dissent is not None
    assert near is not None
    assert dissent.p < 1e-6
    assert near.gain.low <= 0.0


def rated(ratings: np.ndarray) -> Votes:
    """Every two of the answers that each person rated, [people, answers]."""
    people, n = ratings.shape
    first, second = (np.tile(side, people) for side in np.triu_indices(n, 1))
    person = np.repeat(np.arange(people), n * (n - 1) // 2)
    vote = np.where(ratings[person, first] > ratings[person, second], 1, -1)
    return Votes(person, first * n + second, vote, first, second)


def test_neighbours_of_pairs_that_share_answers() -> None:
    """Two tastes are found; ratings at random are not taste, though each of them stands in many pairs."""
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(30, 24))
    taste = np.where(np.arange(30)[:, None] % 2, 1.0, -1.0) * draw.normal(size=24)
    nobody, camps = find_neighbours(rated(noise)), find_neighbours(rated(noise + taste))
    assert nobody is not None
    assert camps is not None
    assert nobody.gain.low <= 0.0
    assert nobody.personal < 0.55
    assert camps.gain.low > 0.1
    assert nobody.votes == 30 * 2 * 66  # 12 answers on either side; pairs across are in neither


def test_a_neighbour_weighs_by_agreement_per_shared_answer() -> None:
    """0 shares 2 answers with 1, both alike, and 40 with 2, 23 of them alike: (2 + 10) / 12 beats (6 + 10) / 50."""
    past = np.ones((3, 40), np.float32)
    past[1, 2:] = 0.0
    past[2, 23:] = -1.0
    future = np.array([[1, -1], [1, -1], [-1, 1]], np.float32)
    right = _predict(past, future, *np.array([[0], [0], [1], [1]]))
    assert right[:, 0].tolist() == [1.0, 0.5, 0.5, 0.5]  # to the others, 1 and 2 weigh the same and disagree


def test_neighbours_need_people_who_share_pairs() -> None:
    assert described(many("a", 20) + many("b", 20, prompt="z")).differences.neighbours is None
    assert described(many("a", 9) + many("b", 9)).differences.neighbours is None
