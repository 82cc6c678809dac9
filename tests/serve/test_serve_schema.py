"""The OpenAPI description of `pfi serve`, held against what it does by schemathesis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from serve_world import FakeEngine, WordEmbedder, make_homes, prompter

from pfi.serve import ServeConfig, Service
from pfi.serve.app import create_app
from pfi.serve.auth import new_token

schemathesis = pytest.importorskip("schemathesis")
#: Text of any user, or of nobody: a stack trace, a path, another profile's name.
PRIVATE = ("Traceback", "/home", "bob", "secret of", ".py")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The description of an application, and headers that open it."""
    homes = make_homes(tmp_path_factory.mktemp("homes"), ["ann", "bob"], records=0)
    config = ServeConfig.model_validate(
        {"names": ["testserver"], "requests_per_minute": 10**6, "tokens_per_minute": 10**9}
    )
    prompter()
    service = Service(homes, config, engine=FakeEngine(answer="an answer"))
    service._embedder = WordEmbedder()  # type: ignore[assignment]
    app = create_app(service, config)
    yield schemathesis.openapi.from_asgi("/openapi.json", app), new_token(homes["ann"])[1]
    service.close()


def check(case: Any, token: str) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    # Most of what is drawn names no model or ends with no question, and would end at that.
    if isinstance(case.body, dict) and "model" in case.body and len(str(case.body)) % 3:
        case.body["model"] = "generic"
        if "messages" in case.body:
            case.body["messages"] = [{"role": "user", "content": "hello"}]
    response = case.call(headers={"Authorization": f"Bearer {token}"})
    case.validate_response(
        response,
        checks=(
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ),
    )
    assert response.headers["x-request-id"][0].startswith("req_")
    if response.status_code != 200:
        assert not [word for word in PRIVATE if word in response.text]


def run(served: Any, examples: int) -> list[str]:
    """Every operation with so many drawn requests; the names of all."""
    schema, token = served
    names = []
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def hold(case: Any) -> None:
            check(case, token)

        hold()
        names.append(operation.label)
    return names


def test_what_is_described_is_what_is_done(served: Any) -> None:
    assert set(run(served, 12)) == {
        "POST /v1/chat/completions",
        "POST /v1/completions",
        "POST /v1/responses",
        "POST /v1/embeddings",
        "GET /v1/models",
        "GET /v1/models/{name}",
        "GET /healthz",
        "GET /metrics",
    }


@pytest.mark.slow
def test_what_is_described_is_what_is_done_at_length(served: Any) -> None:
    run(served, 150)
