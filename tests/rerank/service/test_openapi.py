"""The OpenAPI is right: what schemathesis makes of it is answered as it says, and never with 500."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from rerank.service.http.app import build_app
from rerank.service.upstream import Completion
from tests.rerank.service.conftest import MakeEngine

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
ERRORS = {"400", "401", "404", "409", "413", "422", "429", "503"}


class Says:
    """An upstream that says the same to everybody."""

    def complete(self, body: object, n: int) -> Completion:
        """n equal choices."""
        choice: dict[str, object] = {"index": 0, "message": {"role": "assistant", "content": "a king"}}
        return Completion("says", [choice] * n, ["a king"] * n, 1, 1)

    def models(self) -> list[dict[str, object]]:
        """One model."""
        return [{"id": "says", "object": "model", "created": 0, "owned_by": "tests"}]

    def trouble(self) -> str:
        """None."""
        return ""

    def close(self) -> None:
        """Nothing to close."""


def answer_cases(make_engine: MakeEngine, examples: int) -> int:
    """Send so many right and as many wrong requests of each endpoint, and check the replies; returns how many."""
    engine = make_engine(rate="1000000/minute")
    schema = schemathesis.openapi.from_asgi("/openapi.json", build_app(engine, hosts=("*",), upstream=Says()))
    sent = 0
    for found in schema.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            operation = found.ok()  # type: ignore[union-attr]
            if mode == GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters):
                continue  # nothing can be wrong

            @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @seed(0)
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:  # type: ignore[type-arg]
                nonlocal sent
                sent += 1
                case.call_and_validate(checks=CHECKS)

            check()
    return sent


def test_replies_are_as_described(make_engine: MakeEngine) -> None:
    assert answer_cases(make_engine, 10) > 100


@pytest.mark.soak
def test_many_replies_are_as_described(make_engine: MakeEngine) -> None:
    assert answer_cases(make_engine, 1000) > 5000


def test_errors_are_described(client: TestClient) -> None:
    """Every endpoint names the errors that the gate and it may answer, in their one form."""
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for endpoint in methods.values():
            assert set(endpoint["responses"]) >= ERRORS, path
            for status in ERRORS:
                schema = endpoint["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorReply"}


def test_every_field_of_a_body_is_described(client: TestClient) -> None:
    """Each kind of body that a POST takes has fields, and each of these a description and an example that it takes."""
    api = client.get("/openapi.json").json()
    bodies = 0
    for path, methods in api["paths"].items():
        if "post" not in methods:
            continue
        schema = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
        for kind in schema.get("oneOf") or schema.get("anyOf") or [schema]:
            body = api["components"]["schemas"][kind["$ref"].rpartition("/")[2]]
            assert body["properties"], path
            bodies += 1
            for name, field in body["properties"].items():
                assert field.get("description"), (path, name)
                assert field.get("examples"), (path, name)
            given = {n: f["examples"][0] for n, f in body["properties"].items() if n in body["required"]}
            if path == "/v1/score" and "responses" in given:
                given["prompt"] = "what?"
            elif path == "/v1/feedback" and not {"chosen", "rejected"} <= given.keys():
                of_several = {"responses": ["a king", "a dog"]} if given["type"] == "pick" else {"response": "a king"}
                given |= {"prompt": "what?", **of_several}
            if path != "/v1/chat/completions":
                assert client.post(path, json=given).status_code == 200, (path, given)
    assert bodies == 10
