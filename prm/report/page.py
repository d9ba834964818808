"""Writing of Markdown tables and self-contained pages."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from prm.io.disk import make_folder
from prm.io.tables import write_text


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [" | ".join(cells) for cells in (header, ["---"] * len(header), *rows)]
    return [f"| {line} |" for line in lines]


class Headings:
    """Writes the headings of a page, and remembers them for its table of contents."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def __call__(self, title: str) -> Markup:
        """The heading of a section."""
        self.titles.append(title)
        return Markup('<h2 id="s{}" dir="auto">{}</h2>').format(len(self.titles), title)


def write_page(path: Path, package: str, template: str, **content: object) -> None:
    """Render a package's template into one HTML file without external resources, and create its folder if need be.

    Its only script is our own, named by its digest: a browser runs no other, wherever one might have got in.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("prm.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = jinja2.PackageLoader("prm.report").get_source
    style, script = (Markup(source(environment, name)[0]) for name in ("style.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"heading": Headings(), "style": style, "script": script, "script_digest": digest}
    make_folder(path.parent)
    write_text(path, environment.get_template(template).render(**content))
