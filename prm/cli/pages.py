"""The pages that `prm evaluate` and `prm cold_start` write if asked to."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from prm.errors import PrmError
from prm.io.run_files import read_json, read_run

if TYPE_CHECKING:
    from prm.data.sources import Feedback
    from prm.evaluation.cold_start import ColdStart
    from prm.evaluation.evaluate import Evaluation


class _Signed(TypedDict, total=False):
    """`config.json`; earlier runs have no digest."""

    digest: str


def refuse_no_page(page: str | None, flag: str = "--page") -> None:
    """Raise `PrmError` if the flag names a file that may be a log, or a folder."""
    if page is not None and (Path(page).suffix.lower() not in (".html", ".htm") or Path(page).is_dir()):
        raise PrmError(f"{flag} must be a file that ends in .html, got {page!r}")


def evaluation_page(args: Namespace, data: str, feedback: "Feedback", result: "Evaluation") -> None:
    """Write the page of an evaluation, with the curve of new users if the run or the log has one."""
    if args.page is None:
        return
    from prm.data.comparison import fingerprint
    from prm.evaluation.new_users import new_users_of_run
    from prm.evaluation.page_details import details_of
    from prm.report import write_evaluation
    from prm.report.text.evaluation_page import Provenance

    run, details = Path(args.run), details_of(result)
    fresh = [c for c in feedback.comparisons if c.user_id not in details.known]
    curve = new_users_of_run(run, Path(data), fresh, args.against, args.backbone)
    origin = Provenance(
        command=args.command,
        folder=args.run,
        log=data,
        fingerprint=fingerprint(feedback.comparisons),
        account=feedback.account() if args.log else [],
        run=read_run(run),
        digest=read_json(run / "config.json", _Signed).get("digest", "not recorded"),
    )
    write_evaluation(result, details, curve, origin, Path(args.page))
    _say_written(args)


def cold_start_page(args: Namespace, data: str, result: "ColdStart") -> None:
    """Write the page of a cold start."""
    if args.page is None:
        return
    from prm.report import write_cold_start

    write_cold_start(result, args.run, data, args.command, Path(args.page))
    _say_written(args)


def _say_written(args: Namespace) -> None:
    if not args.json:
        print(f"written to {args.page}")
