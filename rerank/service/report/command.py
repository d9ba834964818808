"""`rerank report`: is personal ranking good, for the users of a service?"""

import json
import shlex
from argparse import Namespace
from pathlib import Path

from prm.cli.output import printing
from prm.cli.pages import refuse_no_page
from prm.cli.parsing import Parser


def build_report_parser() -> Parser:
    """Build the parser of `rerank report`."""
    parser = Parser(
        prog="rerank report",
        description="Measure what personal ranking brings to the users of a service, from its store: against held-out "
        "users, by what was predicted before each comparison, over time, and who loses.",
    )
    parser.add_argument("store", help="database of the service: the path of a SQLite file, or postgresql://...")
    parser.add_argument(
        "--output", metavar="FILE.html", help="self-contained HTML file to write, to read or to send on"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def report_command(args: Namespace) -> None:
    """Read the store, then print and write the report."""
    refuse_no_page(args.output, "--output")
    from rerank.service.report.gain import report_on
    from rerank.service.report.page import print_report, write_report
    from rerank.service.report.records import read_records

    records = read_records(args.store)
    result = report_on(records)
    with printing():
        if args.json:
            print(json.dumps(result.to_dict()))
        else:
            print_report(result, f"Report on {records.store}")
    if args.output:
        write_report(result, records.store, shlex.join(["rerank", "report", records.store]), Path(args.output))
        if not args.json:
            print(f"written to {args.output}")
