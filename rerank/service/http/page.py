"""The page `/`: a person teaches the service their taste. Files without a build step, and nothing of other sites."""

from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Response

from rerank.service.http.common import fault
from rerank.service.http.teaching import UseQuestions

router = APIRouter(include_in_schema=False)

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_PAGE = resources.files("rerank.service").joinpath("page")
_FILES: dict[str, tuple[Traversable, str]] = {
    "look.css": (resources.files("prm.report").joinpath("templates", "style.css"), "text/css"),  # that of all pages
    "page.css": (_PAGE.joinpath("page.css"), "text/css"),
    "page.js": (_PAGE.joinpath("page.js"), "text/javascript"),
    "icon.svg": (_PAGE.joinpath("icon.svg"), "image/svg+xml"),
}


@router.get("/")
def page(questions: UseQuestions) -> Response:
    """The page. The questions are read from now on."""
    questions.start()
    content = _PAGE.joinpath("index.html").read_bytes()
    return Response(content, media_type="text/html", headers={"Content-Security-Policy": _POLICY})


@router.get("/page/{name}")
def file(name: str) -> Response:
    """A file of the page."""
    if name not in _FILES:
        raise fault(404, "no such file")
    source, kind = _FILES[name]
    return Response(source.read_bytes(), media_type=kind)
