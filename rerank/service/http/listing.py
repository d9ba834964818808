"""`/docs`: the endpoints as a plain page, made from the application's OpenAPI; it loads nothing from elsewhere."""

import jinja2
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("rerank.service"), autoescape=True)


@router.get("/docs", response_class=HTMLResponse)
def docs(request: Request) -> HTMLResponse:
    """All endpoints, their fields and errors."""
    return HTMLResponse(_TEMPLATES.get_template("docs.html").render(request.app.openapi()))
