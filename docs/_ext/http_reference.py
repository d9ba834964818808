"""Sphinx extension: `{http-api}` writes the live service's endpoints, from the OpenAPI of its routers."""

import json
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from docutils import nodes
from generated_reference import entry, inline
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PACKAGE = "rerank.service.http"
METHODS = ("get", "post", "put", "patch", "delete")


def openapi() -> dict[str, Any]:
    """The OpenAPI of all routers of the service, which needs no run."""
    from fastapi import APIRouter, FastAPI

    app, package = FastAPI(), import_module(PACKAGE)
    for module in iter_modules(package.__path__):
        router = getattr(import_module(f"{PACKAGE}.{module.name}"), "router", None)
        if isinstance(router, APIRouter):
            app.include_router(router)
    return app.openapi()


def bodies(api: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, schema) of each kind of body that an operation takes."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = content.get("schema", {})
    for one in schema.get("oneOf") or schema.get("anyOf") or [schema]:
        name = one.get("$ref", "").rpartition("/")[2]
        if name:
            yield name, api["components"]["schemas"][name]


def kind_of(schema: dict[str, Any]) -> str:
    """What a field holds, in words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return f'"{schema["const"]}"'
    if "enum" in schema:
        return " or ".join(f'"{value}"' for value in schema["enum"])
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(kind_of(one) for one in several if one.get("type") != "null"))
    kind = {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "object"}.get(
        schema.get("type", ""), schema.get("type", "anything")
    )
    return f"list of {kind_of(schema['items'])}" if kind == "array" else str(kind)


class HttpApi(SphinxDirective):
    """Every path with its summary, and the fields of its body."""

    def run(self) -> list[nodes.Node]:
        api, sections = openapi(), list[nodes.Node]()
        for path, operations in sorted(api["paths"].items()):
            for method in filter(operations.__contains__, METHODS):
                sections.append(self._section(api, f"{method.upper()} {path}", operations[method]))
        return sections

    def _section(self, api: dict[str, Any], title: str, operation: dict[str, Any]) -> nodes.section:
        name = nodes.make_id(f"http {title}")
        section = nodes.section("", nodes.title(title, title), ids=[name])
        self.state.document.note_explicit_target(section)
        section += nodes.paragraph("", "", *inline(operation.get("description") or operation.get("summary", "")))
        for kind, schema in bodies(api, operation):
            text = f"`{kind}`: {' '.join(schema.get('description', '').split())}"
            section += nodes.paragraph("", "", *inline(text))
            required = schema.get("required", [])
            items = []
            for field, value in schema.get("properties", {}).items():
                fact = f" {kind_of(value)}{'; required' if field in required else ''}"
                term = [nodes.literal(field, field), nodes.inline("", fact, classes=["allowed"])]
                examples = [f"Such as `{json.dumps(value['examples'][0])}`."] if "examples" in value else []
                items.append(entry(term, [value.get("description", ""), *examples]))
            section += nodes.definition_list("", *items, classes=["settings"])
        return section


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("http-api", HttpApi)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
