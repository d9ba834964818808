"""What is logged in a call from Python is shown as by a command, unless the caller has set up logging."""

import subprocess
import sys

import pytest

from tests.paths import ROOT

_SHOWN = """
import logging
from prm.io.log_lines import log_shown
logger = logging.getLogger("policy.of.ours")
{setup}
@log_shown()
def work():
    with log_shown():
        logger.info("rows")
    logging.getLogger("theirs").info("noise")
    logger.warning("care")
work()
work()
logger.info("after")
"""


@pytest.mark.parametrize(
    ("setup", "lines"),
    [
        ("", ["rows", "care"]),
        ("logging.getLogger('policy').setLevel('WARNING')", ["care"]),
        ("logging.basicConfig(format='mine: %(message)s')", ["mine: care"]),
        ("logging.basicConfig(format='mine: %(message)s', level='ERROR')", []),
        ("logging.getLogger('prm').addHandler(logging.NullHandler())", ["rows", "care"]),
    ],
)
def test_a_call_shows_its_lines_once_and_leaves_logging_as_it_was(setup: str, lines: list[str]) -> None:
    code = _SHOWN.format(setup=setup)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == lines * 2
