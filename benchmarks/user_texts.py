"""What a person's own text is worth before their first comparison, on real people who were left out of training.

`python -m benchmarks.user_texts --data DATA` trains empirical Bayes on four fifths of the people of `harms`, who gave
age, politics, religion and education, and measures every comparison of the others: without their text, with the prior
that the run kept (`kept`), and with the best one, whether it was kept or not (`always`). It prints a table and stores
each person's figures in `runs/questions/user-texts.json`, from which a killed run is resumed.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from benchmarks.questions import Part, harms_parts, trained
from prm.data.comparison import Comparison, latest_user_texts
from prm.io.tables import write_json
from prm.metrics import Array, correct, estimate, nll
from prm.models.reward_model import standard_of
from prm.report import show, table
from prm.scoring.scorer import Scorer
from prm.users.bayes import text_regression
from prm.users.bayes.posterior import Posterior
from prm.users.bayes_model import Bayes
from prm.users.text_prior import TextPrior

WITHOUT, KEPT, ALWAYS = "without text", "kept", "always"


class OfPerson(TypedDict):
    """Mean log loss (nats) and accuracy in [0, 1] of a person's comparisons, by model."""

    user: str
    nats: dict[str, float]
    accuracy: dict[str, float]


class OfPart(TypedDict):
    """A part's people; whether the run kept the prior, and the share of the users' variance that it explains."""

    people: list[OfPerson]
    kept: bool
    share: float


def measured(part: Part, folder: Path) -> OfPart:
    """Every comparison of the part's people, scored by each model."""
    scorer = trained(part, folder)
    log = [c for c in part.comparisons(part.asked, 10_000) if not c.is_tie]
    kept = scorer.checkpoint.settings.user_text == "prior"
    margins = {WITHOUT: _margins(scorer, log, [""] * len(log))}
    texts = [c.user_text for c in log]
    margins[KEPT] = _margins(scorer, log, texts) if kept else margins[WITHOUT]
    share = float("nan") if kept else _set_best(scorer, part)
    margins[ALWAYS] = margins[KEPT] if kept else _margins(scorer, log, texts)
    people = []
    for user in sorted(part.asked):
        own = np.array([c.user_id == user for c in log])
        label = np.ones(int(own.sum()))
        nats = {name: float(nll(m[own], label).mean()) for name, m in margins.items()}
        right = {name: float(correct(m[own], label).mean()) for name, m in margins.items()}
        people.append(OfPerson(user=user, nats=nats, accuracy=right))
    return OfPart(people=people, kept=kept, share=share)


def _margins(scorer: Scorer, log: Sequence[Comparison], texts: Sequence[str]) -> Array:
    prompts, first, second = [c.prompt for c in log], [c.chosen for c in log], [c.rejected for c in log]
    return scorer.margin_batch(prompts, first, second, [None] * len(log), list(texts)).double().numpy()


@torch.no_grad()
def _set_best(scorer: Scorer, part: Part) -> float:
    """Set the prior with the best penalty, which the run did not keep; returns the share that it explains."""
    model, index = scorer.checkpoint.model.user_model, scorer.checkpoint.users
    assert isinstance(model, Bayes)
    texts = {c.user_id: c.user_text for c in latest_user_texts(part.comparisons(part.train, part.max_pairs))}
    distinct = sorted(set(texts.values()))
    rows = torch.tensor([index.row(user) for user in texts])
    of_user = torch.tensor([distinct.index(text) for text in texts.values()])
    states = scorer.reader.pooled_user_texts(distinct)
    mean, scale = standard_of(states)
    posterior = Posterior(model.means[rows], model.factors[rows])
    text_regression._MIN_STANDARD_ERRORS = -float("inf")
    fitted = text_regression.fit_text_map((states - mean) / scale, of_user, posterior, model.prior)
    assert fitted is not None
    model.text_prior = TextPrior(states.shape[1], len(model.prior), model.kept)
    for buffer, values in zip(model.text_prior.buffers(), (mean, scale, fitted.weight, fitted.root), strict=True):
        buffer.copy_(values)
    scorer.reader._use_of_text = "prior"
    return fitted.share


def main(arguments: Sequence[str] | None = None, folder: Path = Path("runs/questions")) -> None:
    """Measure what is missing, then print the table."""
    parser = ArgumentParser(prog="python -m benchmarks.user_texts", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(arguments)
    output = folder / "user-texts.json"
    known: dict[str, OfPart] = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    for part in (part for seed in range(args.seeds) for part in harms_parts(args.data, seed)):
        if part.name not in known:
            known[part.name] = measured(part, folder)
            write_json(output, known)
            show(f"{part.name}: kept {known[part.name]['kept']}, share {known[part.name]['share']:.3f}")
    kept = sum(part["kept"] for part in known.values())
    show(table(f"a prior was kept in {kept} of {len(known)} runs", HEADER, rows_of(list(known.values()))))


HEADER = ["", "people", "log loss", "accuracy %", "lower log loss", "accuracy gain, points"]


def rows_of(parts: Sequence[OfPart]) -> list[list[str]]:
    """Means over people, each of whom is left out once per seed, and paired differences with intervals over people."""
    people = [person for part in parts for person in part["people"]]
    users = [person["user"] for person in people]
    out = []
    for name in (WITHOUT, KEPT, ALWAYS):
        nats, right = (np.array([person[key][name] for person in people]) for key in ("nats", "accuracy"))
        base_nats, base_right = (np.array([person[key][WITHOUT] for person in people]) for key in ("nats", "accuracy"))
        cells = [f"{nats.mean():.4f}", f"{100 * right.mean():.2f}"]
        if name != WITHOUT:
            lower, gain = estimate(base_nats - nats, users), estimate(100 * (right - base_right), users)
            cells += [f"{e.value:+.4f} [{e.low:+.4f}, {e.high:+.4f}]" for e in (lower, gain)]
        out.append([name, str(len(set(users))), *cells, *[""] * (4 - len(cells))])
    return out


if __name__ == "__main__":
    main()
