"""The API is what its own document says: requests generated from it are answered, each as documented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.console.rig import ASKING, Api, served
from tests.console.schema import ANYTHING, mistakes, values

OPERATIONS = (
    ("get", "/health"),
    ("get", "/login"),
    ("post", "/login"),
    ("post", "/logout"),
    ("get", "/me"),
    ("get", "/runs"),
    ("post", "/runs"),
    ("get", "/runs/{run}"),
    ("get", "/runs/{run}/journal"),
    ("get", "/runs/{run}/requests"),
    ("post", "/runs/{run}/approve"),
    ("post", "/runs/{run}/abort"),
    ("post", "/runs/{run}/resume"),
    ("post", "/runs/{run}/rollback"),
    ("post", "/runs/{run}/commit"),
    ("get", "/runbooks"),
    ("post", "/runbooks/validate"),
    ("get", "/runbooks/{name}"),
    ("put", "/runbooks/{name}"),
    ("get", "/runbooks/{name}/plan"),
    ("get", "/fleet"),
    ("get", "/fleet/policy"),
    ("post", "/fleet/policy/set"),
    ("post", "/fleet/policy/unset"),
    ("post", "/fleet/sources/{source}/retire"),
    ("get", "/fleet/upgrade"),
    ("post", "/fleet/upgrade"),
    ("post", "/fleet/upgrade/resume"),
    ("post", "/fleet/upgrade/stop"),
    ("post", "/runbooks/{name}/ready"),
    ("get", "/ready"),
    ("get", "/ready/page"),
    ("get", "/parties"),
    ("get", "/sources"),
    ("get", "/sources/{source}/points"),
    ("get", "/sources/{source}/points/{point}"),
    ("get", "/sources/{source}/branches"),
    ("get", "/sources/{source}/inventory"),
    ("get", "/monitoring/targets"),
    ("get", "/reports"),
    ("get", "/reports/{run}"),
    ("get", "/reports/{run}/page"),
)


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, dict[str, Any], dict[str, list[str]]]]:
    """An API with runs, and names that lead somewhere."""
    with served(tmp_path_factory.mktemp("console")) as api:
        api.do("PUT", "/runbooks/shop", {"text": ASKING})
        run = api.do("POST", "/runs", {"mode": "drill", "runbook": "shop"})["run"]
        api.until(run, lambda found: found["waiting_for"])
        names = {"run": [run], "name": ["shop"], "runbook": ["shop"], "source": ["shop"], "point": ["latest", "1-1"]}
        yield api, api.get("/openapi.json"), names


def test_the_document_lists_everything_and_nothing_else(api: Api) -> None:
    document = api.get("/openapi.json")
    listed = {(method, path.removeprefix("/api/v1")) for path, each in document["paths"].items() for method in each}
    assert listed == set(OPERATIONS)
    for path, each in document["paths"].items():
        for operation in each.values():
            assert ("security" in operation) == (path not in ("/api/v1/health", "/api/v1/login")), path
            assert operation["summary"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_whatever_is_asked_is_answered_as_documented(
    lived_in: tuple[Api, dict[str, Any], dict[str, list[str]]], method: str, path: str, data: st.DataObject
) -> None:
    api, document, names = lived_in
    operation = document["paths"][f"/api/v1{path}"][method]
    filled, query = path, []
    for parameter in operation.get("parameters", ()):
        name, made = parameter["name"], values(parameter["schema"], document)
        if parameter["in"] == "path":
            value = data.draw(st.one_of(st.sampled_from(names[name]), made, st.text(min_size=1, max_size=10)))
            filled = filled.replace("{" + name + "}", quote(str(value).encode("utf-8", "replace"), safe=""))
        elif parameter["in"] == "query" and data.draw(st.booleans()):
            value = data.draw(st.one_of(made, ANYTHING))
            query.append(f"{name}={quote(str(value).encode('utf-8', 'replace'), safe='')}")
    body = None
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        body = data.draw(st.one_of(values(schema, document), ANYTHING))
        if isinstance(body, dict) and "mode" in body and "runbook" in body:
            body["runbook"] = data.draw(st.sampled_from(["shop", body["runbook"]]))
    if path == "/logout":
        return  # it is the token that all of this is asked with
    answer = api.ask(method.upper(), filled + ("?" + "&".join(query) if query else ""), body)
    if answer.status in (307, 400, 405):  # a path that names another operation, or no JSON
        return
    assert str(answer.status) in operation["responses"], (filled, answer)
    assert answer.status < 500, answer
    told = operation["responses"][str(answer.status)].get("content", {})
    if "text/html" in told and answer.status == 200:
        assert answer.body.startswith(b"<!doctype html>")
    else:
        assert mistakes(answer.json, told["application/json"]["schema"], document) == []
    if answer.status >= 400:
        assert answer.json["id"]
        assert answer.json["hint"]
        assert "Traceback" not in answer.json["message"]
