"""Sphinx configuration: `make docs` builds the site, with warnings as errors and without a network."""

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs/_ext")]

project = "personalized-rm"
author = "the personalized-rm authors"
copyright = author
try:
    release = metadata.version("personalized-rm")
except metadata.PackageNotFoundError:
    release = "0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "generated_reference",
    "http_reference",
]
exclude_patterns = ["_ext", "_pictures/*.py"]
nitpicky = False

myst_enable_extensions = ["deflist", "attrs_inline"]
myst_heading_anchors = 3

smartquotes = False  # it makes dashes of the hyphens of flags
default_role = "code"  # docstrings write code in single backticks
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_use_type_comments = False
maximum_signature_line_length = 80
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "personalized-rm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["../llms.txt"]
html_copy_source = False
html_show_sphinx = False
templates_path: list[str] = []


def _keep_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading what stands before a colon in a property's docstring as its type."""
    if what in ("attribute", "property", "data"):
        lines.insert(0, "")


def setup(app: Any) -> None:
    """Connect the hook ahead of napoleon's."""
    app.connect("autodoc-process-docstring", _keep_colons, priority=100)
