"""The details of an evaluation: by hand, and how often the interval of the calibration error holds."""

from typing import cast

import numpy as np
import pytest

from prm.evaluation.evaluate import Evaluation, evaluate
from prm.evaluation.page_details import calibration_error, details_of
from prm.metrics import calibration
from prm.scoring.scorer import Scorer
from tests.prm.evaluation.audit.fakes import FakeScorer, by_length, judged

LONG, SHORT = "one two three four", "one two"


def found(uniform: bool = True) -> Evaluation:
    """ann and bob like it long, zoe is new and likes it short; only the personal model knows the first two."""
    log = [judged(user, f"q{i}", LONG, SHORT) for user in ("ann", "bob") for i in range(12)]
    log += [judged("zoe", f"q{i}", SHORT, LONG) for i in range(6)]
    personal = FakeScorer(["ann", "bob"], lambda prompt, y, user, text: (0.5 if user else -0.25) * len(y.split()))
    other = FakeScorer([], by_length(-0.5))
    return evaluate(cast(Scorer, personal), log, cast(Scorer, other) if uniform else None)


def test_details_by_hand() -> None:
    """Margins: 1 and -1 for whom it knows; zoe gets 0.5 from the generic user and 1 from the uniform model."""
    details = details_of(found())
    assert (details.baseline, details.known) == ("uniform, tuned", {"ann", "bob"})
    assert [(one.user, one.personal, one.uniform) for one in details.people.people] == [("ann", 1, 0), ("bob", 1, 0)]
    assert details.people.people[0].nats.value == pytest.approx(1.0)  # log(1 + e) - log(1 + 1 / e)
    new, known = details.by_training
    assert (new.train_comparisons, new.people, new.comparisons, new.points.value) == ("0", 1, 6, 0.0)
    assert new.nats.value == pytest.approx(np.log1p(np.exp(-1)) - np.log1p(np.exp(-0.5)))
    assert (known.train_comparisons, known.people, known.comparisons, known.points.value) == ("30 to 99", 2, 24, 1.0)


def test_without_a_uniform_model_the_generic_user_stands_in() -> None:
    details = details_of(found(uniform=False))
    assert details.baseline == "generic user"
    assert details.people.people[0].nats.value == pytest.approx(np.log1p(np.exp(0.5)) - np.log1p(np.exp(-1)))
    assert set(details.calibration) == {"personal", "generic user"}


def test_details_need_the_margins() -> None:
    with pytest.raises(ValueError, match="margins"):
        details_of(Evaluation(**{**vars(found()), "scored": None}))
    assert "scored" not in found().to_dict()


def test_the_calibration_error_is_that_of_the_metrics() -> None:
    """Predicted 0.8808, observed 0.75 for every user: the interval has no width. One user has none."""
    margin, p = np.full(80, 2.0), (np.arange(80) % 4 != 0).astype(float)
    users = np.repeat([f"u{i}" for i in range(4)], 20)
    error = calibration_error(margin, p, users)
    assert error.value == pytest.approx(calibration(margin, p).error)
    assert (error.low, error.high) == pytest.approx((0.130797, 0.130797), abs=1e-6)
    alone = calibration_error(margin[:20], p[:20], users[:20])
    assert (alone.low, alone.high) == (-np.inf, np.inf)
    assert np.isnan(calibration_error(np.zeros(0), np.zeros(0), []).value)


@pytest.mark.parametrize(("slope", "truth"), [(1.0, 0.0), (0.4, 0.1082)])
def test_the_interval_holds_the_true_error(slope: float, truth: float) -> None:
    """40 samples of 40 users; labels drawn with `slope` times the model's logits. `truth` is from 400,000 pairs."""
    draw, held = np.random.default_rng(0), 0
    users = np.repeat(np.arange(40).astype(str), 30)
    for _ in range(40):
        margin = draw.normal(0.0, 1.2, len(users))
        won = draw.random(len(users)) < 1.0 / (1.0 + np.exp(-slope * margin))
        error = calibration_error(np.where(won, margin, -margin), np.ones(len(users)), users)
        held += error.low <= truth <= error.high
        assert error.low <= error.value <= error.high
    assert held >= 34
