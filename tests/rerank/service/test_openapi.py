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


def answer_cases(make_engine: MakeEngine, examples: int) -> int:
    """Send so many right and as many wrong requests of each endpoint, and check the replies; returns how many."""
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", build_app(make_engine(rate="1000000/minute"), hosts=("*",))
    )
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
