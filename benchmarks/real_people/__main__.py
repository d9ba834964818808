"""Compare user models on sets of real people; write a page, its picture and the JSON file that holds its figures.

Sets are measured one by one, and the page is written after each. A killed command goes on with the fit that it was at.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from benchmarks.real_people.measure import Measuring, measured
from benchmarks.real_people.page import page_of
from benchmarks.real_people.picture import write_picture
from benchmarks.real_people.results import read_results, write_results
from benchmarks.real_people.sets import SETS, RealPeople
from prm.config import BackboneConfig
from prm.evaluation.compare.config import Name
from prm.io.disk import make_folder
from prm.io.tables import write_text
from prm.report import show

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main(arguments: Sequence[str] | None = None, sets: Sequence[RealPeople] = SETS) -> None:
    """Measure the sets, and write `benchmark.md`, `_static/benchmark.svg` and `_static/benchmark.json`.

    Raises `PrmError` if a set or a model cannot be read, or if `--folder` holds other settings or data.
    """
    parser = _parser([one.name for one in sets])
    args = parser.parse_args(arguments)
    how = Measuring(args.data, args.folder, args.seed, args.folds, args.backbone, args.models or (), args.model)
    static = args.docs / "_static"
    make_folder(static)
    for one in sets:
        if args.sets and one.name not in args.sets:
            continue
        show(f"{one.name}: {one.title}")
        figures = measured(one, how)
        write_results(static / "benchmark.json", {**read_results(static / "benchmark.json"), one.name: figures})
        write_all(args.docs, sets)
    show(f"{args.docs / 'benchmark.md'}")


def write_all(docs: Path, sets: Sequence[RealPeople]) -> None:
    """Write the page and its picture from the JSON file."""
    found = read_results(docs / "_static/benchmark.json")
    write_picture(docs / "_static/benchmark.svg", found)
    write_text(docs / "benchmark.md", page_of(found, sets))


def _parser(names: Sequence[str]) -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m benchmarks.real_people", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--sets", nargs="*", choices=names, help="default: all")
    parser.add_argument("--models", nargs="*", choices=get_args(Name), help="default: all that `prm compare` has")
    parser.add_argument("--model", type=Path, action="append", default=[], help="a file with a model of your own")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/real-people"), help="what a killed command resumes from"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--backbone", default=BackboneConfig.name)
    return parser


if __name__ == "__main__":
    main()
