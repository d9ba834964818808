"""Every kind of page, written from figures made here, with user ids and texts that try to break it."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast

from prm.data.comparison import Comparison, Extent
from prm.data.profile import describe
from prm.evaluation.audit import audit
from prm.evaluation.cold_start import ColdStart, ColdStartStep
from prm.evaluation.compare.summary import (
    BEST_BASELINE,
    BEST_PERSONAL,
    Comparisons,
    CountGroup,
    Gains,
    ModelRow,
    NewUsers,
)
from prm.evaluation.compare.verdict import verdict_on
from prm.evaluation.evaluate import Evaluation, evaluate
from prm.evaluation.new_users import StoredColdStart, curve_of
from prm.evaluation.page_details import details_of
from prm.experiments import judge
from prm.experiments.claims import is_below
from prm.experiments.experiment_parts import Experiment, ExperimentRow
from prm.metrics import Estimate, calibration
from prm.report import (
    ArmPanel,
    ArmPoint,
    LengthPanel,
    Panel,
    Sample,
    write_arms,
    write_audit,
    write_cold_start,
    write_curves,
    write_evaluation,
    write_experiments,
    write_model_comparison,
    write_profile,
)
from prm.report.section import Section
from prm.report.text.evaluation_page import Provenance
from prm.scoring.scorer import Scorer
from rerank.service.report.gain import report_on
from rerank.service.report.page import write_report
from rerank.service.report.records import read_records
from tests.prm.data.profile.logs import log_of
from tests.prm.evaluation.audit.fakes import FakeScorer, judged
from tests.prm.experiments.test_experiments import looks, result
from tests.rerank.service.report.stores import planted

SCRIPT = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
SEEN = 86421  # comparisons that the evaluated run was trained on
NASTY = (SCRIPT, "\"quoted\" & 'so' </td>", "\u202eمستخدم رقم", "w" * 150, "$x_$ {{ 7*7 }}", "ann\tb  c")


@cache
def comparisons(people: int = 30, each: int = 12) -> list[Comparison]:
    """People who like it long or short, with noise; the first ids are hostile."""
    draw, rows = random.Random(0), list[Comparison]()
    for i in range(people):
        user = NASTY[i] if i < len(NASTY) else f"person {i:02d}"
        for k in range(each):
            pair = (f"word {'long ' * (k + 2)}{SCRIPT if not k else ''}", f"short {k}")
            likes_long = (i % 2 == 0) != (draw.random() < 0.2)
            rows.append(judged(user, f"question {i} {k}", *(pair if likes_long else pair[::-1])))
    return rows


def scorers(rows: list[Comparison]) -> tuple[Scorer, Scorer]:
    """(a personal model that knows two thirds of the people, a uniform one that likes it a little longer)."""
    users = list(dict.fromkeys(c.user_id for c in rows))
    sign = {user: 1.0 - 2.0 * (i % 2) for i, user in enumerate(users)}
    known = [user for i, user in enumerate(users) if i < len(NASTY) or i % 3]

    def reward(prompt: str, response: str, user: str | None, text: str) -> float:
        return (0.3 * sign[user] if user in sign else 0.02) * min(len(response.split()), 6)

    def mild(prompt: str, response: str, user: str | None, text: str) -> float:
        return 0.01 * len(response.split())

    return cast(Scorer, FakeScorer(known, reward)), cast(Scorer, FakeScorer([], mild))


@cache
def evaluated() -> Evaluation:
    """An evaluation with length signs, by user."""
    return evaluate(
        *_first(comparisons()),
        length_votes={"length_sign": {"": 1.0}, "length_count": {"": 3.0}},
        by=["train_comparisons"],
    )


def _first(rows: list[Comparison]) -> tuple[Scorer, list[Comparison], Scorer]:
    scorer, uniform = scorers(rows)
    return scorer, rows, uniform


def cold_start() -> ColdStart:
    """Three steps with the verdict of an evaluation."""
    verdict, steps = evaluated().verdict, list[ColdStartStep]()
    row = evaluated().row("personal")
    for after, gain in ((0, 0.0), (5, 0.04), (20, 0.1)):
        accuracy = Estimate(0.6 + gain, 0.57 + gain, 0.63 + gain)
        rows = [
            replace(row, accuracy=accuracy),
            replace(row, name="uniform, tuned", accuracy=Estimate(0.6, 0.57, 0.63)),
        ]
        steps.append(
            ColdStartStep(after, verdict, rows, Estimate(gain, gain - 0.02, gain + 0.02), Estimate(gain, 0, 1))
        )
    return ColdStart(steps, 9, 300, 1, 2, "prompt")


def evaluation_page(folder: Path) -> Path:
    path = folder / "new" / "evaluation.html"
    found = replace(evaluated(), overlap={"own": SEEN, "others": 0})
    run = {
        "config": {"data": {"holdout_by": "user", "test_fraction": 0.2}, "seed": 0, "backbone": {"name": SCRIPT}},
        "data": {"path": SCRIPT, "fingerprint": "ab12", "left_out": {"too small": 3}},
        "environment": {"versions": {"torch": "2.13.0"}, "commit": "c0ffee", "written": "2026-11-30"},
    }
    origin = Provenance(f"prm evaluate '{SCRIPT}'", "runs/mine", SCRIPT, "ab12", [f"9 rows {SCRIPT}"], run, "d1e5")
    curve = curve_of(cast(StoredColdStart, cold_start().to_dict()), SCRIPT)
    write_evaluation(found, details_of(found), curve, origin, path)
    return path


def cold_start_page(folder: Path) -> Path:
    write_cold_start(cold_start(), "runs/mine", SCRIPT, f"prm cold_start '{SCRIPT}'", folder / "cold_start.html")
    return folder / "cold_start.html"


def audit_page(folder: Path) -> Path:
    scorer, uniform = scorers(comparisons())
    write_audit(audit(scorer, uniform, comparisons(), phrases=["long"]), folder, f"run {SCRIPT}")
    return folder / "index.html"


def profile_page(folder: Path) -> Path:
    skipped = [{"row_of": "log, line 3", "fault": f"bad {SCRIPT}", "row": {}}]
    write_profile(describe(log_of(comparisons(), skipped=skipped), None), folder, f"log {SCRIPT}")
    return folder / "index.html"


def curves_page(folder: Path) -> Path:
    line = [Estimate(0.1 * k, 0.1 * k - 0.05, 0.1 * k + 0.05) for k in range(8)]
    panels = [Panel(f"{name} {SCRIPT}", "logits", {"personal": line, "oracle": line}, {}) for name in ("gain", "wins")]
    table = Section("per user", ("user", "gain"), tuple((user, f"{i}.5 [1, 2]") for i, user in enumerate(NASTY)))
    write_curves(folder, f"Best of 8 {SCRIPT}", {}, [table], panels)
    return folder / "index.html"


def arms_page(folder: Path) -> Path:
    gain = Estimate(0.4, 0.2, 0.6)
    points = tuple(
        ArmPoint(letter, f"{letter} {SCRIPT}"[:30], x, gain, "line")
        for letter, x in (("A", 0.0), ("B", 3.0), ("C", None))
    )
    panels = [ArmPanel("all users", points), ArmPanel("the few", points)]
    lengths = [
        LengthPanel(name, NASTY, ("many",) * 3 + ("few",) * 3, ((30.0, 2.0),) * len(NASTY))
        for name in ("SFT", "DPO", "PPO")
    ]
    header = ("arm", "gold reward", "wins %", "nats", "words", "empty %", "cut %", "tokens per response", "seconds")
    rows = tuple((f"{name} {SCRIPT}", *[f"{i}.1 [0.0, 1.2]"] * 8) for i, name in enumerate("CAB"))
    samples = [
        Sample(f"{'why ' * 60}{SCRIPT}", NASTY[2], tuple((name, text, "1.2") for name, text in zip("ABC", NASTY)))
    ]
    write_arms(
        folder,
        f"Arms {SCRIPT}",
        [f"Most: {SCRIPT}"],
        [Section("Rewards", header, rows)],
        panels,
        samples,
        "gain",
        lengths,
    )
    return folder / "index.html"


def experiment_page(folder: Path) -> Path:
    rows = tuple(
        ExperimentRow(name, f"{name}, a model with a long name") for name in ("first", "second", "third", "last")
    )
    experiment = Experiment("x", "Table X", "tldr", rows, (is_below("second", "first"),), "prefers", "curves")
    results = {row.name: result(0.6 + 0.1 * i, looks=looks([0.6, 0.9], [0.5, 0.6])) for i, row in enumerate(rows[:3])}
    write_experiments(experiment, results, judge(experiment, results), folder, "laptop")
    return folder / "index.html"


def models_page(folder: Path) -> Path:
    """The user models of `prm compare`, on a log with a hostile name."""
    one, bins = Estimate(0.6, 0.55, 0.65), calibration([1.0, 2.0, -1.0], [1.0, 1.0, 1.0])
    gains = Gains(*[Estimate(0.02, -0.01, 0.05)] * 4)

    def row(name: str, personal: bool, ahead: Gains | None = gains) -> ModelRow:
        return ModelRow(name, personal, one, one, one, one, bins, 0.4, ahead, one, 0.65, [0.65], 24, 3.0, [{"l2": 1.0}])

    rows = [row(BEST_BASELINE, False, None), row(BEST_PERSONAL, True), row("uniform", False), row("bayes", True)]
    by_name = {BEST_BASELINE: gains, BEST_PERSONAL: gains, "bayes": gains}
    counts = [CountGroup(1, 9, 40, 300, by_name), CountGroup(10, None, 50, 900, by_name)]
    both = dict.fromkeys((BEST_BASELINE, BEST_PERSONAL), one)
    new = [NewUsers(after, 12, 200, both, both, by_name) for after in (0, 2, 9)]
    result = Comparisons(Extent(900, 90, 60), 900, 880, 60, 5, {"uniform": 5}, {"bayes": 5}, rows, counts, new)
    write_model_comparison(result, verdict_on(result), f"# {SCRIPT}", folder, SCRIPT)
    return folder / "index.html"


def service_page(folder: Path) -> Path:
    """The report of a service, of a store with a hostile name."""
    planted(f"sqlite:///{folder}/store.db", 0.3, people=44)
    path = folder / "report.html"
    write_report(report_on(read_records(f"sqlite:///{folder}/store.db")), SCRIPT, f"rerank report '{SCRIPT}'", path)
    return path


PAGES: dict[str, Callable[[Path], Path]] = {
    "evaluation": evaluation_page,
    "cold start": cold_start_page,
    "audit": audit_page,
    "profile": profile_page,
    "curves": curves_page,
    "policies": arms_page,
    "user models": models_page,
    "experiment": experiment_page,
    "service": service_page,
}
