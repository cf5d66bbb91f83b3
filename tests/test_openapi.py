"""The description of the endpoint, `docs/openapi.json`: it says what the code does, and no more."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis.core.failures import FailureGroup

from aevents import batch, cloudevents, subscribe_to, wire
from aevents.event import MAX_TYPE_LENGTH
from aevents.settings import Limits
from tests.fuzz import targets
from tests.fuzz.asking import MODES, Way, ask_all, described, naming, reply, text
from tests.pages import DOCS, ROOT, Page
from tests.project.clients import WAYS, ask

SIZE = 100
POST = described()["paths"]["/events/"]["post"]


def _resolved(node: Any) -> Any:
    """Return a node with what it refers to in its place."""
    if isinstance(node, dict) and "$ref" in node:
        path, node = node["$ref"].removeprefix("#/").split("/"), described()
        for part in path:
            node = node[part]
    return node


def _statuses(content: Any) -> set[str]:
    """Return the words that `status` may be in the answers that a schema describes."""
    content = _resolved(content)
    if "anyOf" in content:
        return set().union(*map(_statuses, content["anyOf"]))
    status = content["properties"].get("status", {})
    return set(status.get("enum", [status["const"]] if "const" in status else []))


# --- the description and the code ---


def test_it_describes_every_header_that_is_read_and_no_other() -> None:
    parameters = [_resolved(parameter) for parameter in POST["parameters"]]
    assert {parameter["in"] for parameter in parameters} == {"header"}
    # OpenAPI has the content type elsewhere.
    assert {parameter["name"] for parameter in parameters} == {*wire.HEADERS} - {"content-type"}


def test_it_describes_every_content_type_that_is_taken() -> None:
    assert set(POST["requestBody"]["content"]) == {wire.JSON, wire.BATCH, cloudevents.STRUCTURED}


def test_it_describes_the_answers_of_the_page_on_the_wire() -> None:
    listed = {(int(row[0]), tuple(_members(row[1]))) for row in Page(DOCS / "wire.md").tables()[1]}
    for status, members in listed:
        (content,) = POST["responses"][str(status)]["content"].values()
        schemas = _resolved(content["schema"]).get("anyOf", [content["schema"]])
        assert set(members) in [set(_resolved(schema)["properties"]) for schema in schemas]
    assert {status for status, _ in listed} == {int(status) for status in POST["responses"]}


def _members(code: str) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(code.strip("`").replace("...", "null"))
    return members


def test_it_describes_every_word_that_an_answer_may_say() -> None:
    said = {status: _statuses(_schema(status)) for status in ("200", "202", "503")}
    assert said == {
        "200": {"handled", "unhandled", "duplicate"},
        "202": {"stored"},
        "503": {"failed", "unavailable"},
    }
    source = "".join(path.read_text() for path in (ROOT / "aevents").glob("*.py"))
    written = set(re.findall(r'Answer\((\d+), \{.*?"status": "(\w+)"', source))
    assert written == {(status, word) for status, words in said.items() for word in words}


def _schema(status: str) -> Any:
    return POST["responses"][status]["content"][wire.JSON]["schema"]


def test_its_bounds_are_the_defaults_and_its_offer_is_the_one_that_is_made() -> None:
    schemas = described()["components"]["schemas"]
    assert schemas["Batch"]["maxItems"] == Limits.BATCH
    assert schemas["Name"]["maxLength"] == MAX_TYPE_LENGTH
    for response in POST["responses"].values():
        assert _resolved(response["headers"]["Accept-Post"])["schema"] == {"const": batch.OFFER}


@pytest.mark.parametrize("content_type", [wire.JSON, cloudevents.STRUCTURED, wire.BATCH])
def test_its_examples_are_events(content_type: str) -> None:
    example = POST["requestBody"]["content"][content_type]["example"]
    found = ask("asgi", json.dumps(example), {"content-type": content_type})
    assert found.status == 200
    assert found.content.get("events", []) == []


# --- made-up requests ---


@pytest.fixture
def _settings(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.AEVENTS = targets.AEVENTS
    caplog.set_level(logging.CRITICAL, "aevents")  # of each handler that fails


def _handlers() -> None:
    async def fails(payload: Any) -> None:
        raise ValueError

    subscribe_to("noted", lambda payload: None, name="noting")
    subscribe_to("failing", fails, name="failing")


def _by(way: str) -> Way:
    def send(request: requests.PreparedRequest) -> schemathesis.Response:
        headers = {name: text(value) for name, value in request.headers.items()}
        assert isinstance(request.body, bytes)
        found = ask(way, request.body, headers, method=str(request.method))
        return reply(request, found.status, found.headers, found.body)

    return Way(send)


UNSIGNED = {way: _by(way) for way in WAYS}
SIGNED = {f"{name}, signed": replace(way, keys=targets.KEYS[:1]) for name, way in UNSIGNED.items()}


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("mode", MODES)
def test_every_answer_is_one_that_is_described(mode: str) -> None:
    _handlers()
    counts = ask_all(
        naming("noted", "failing"), {**UNSIGNED, **SIGNED}, mode=MODES[mode], most=SIZE, seeds=[1]
    )
    for way, statuses in counts.items():
        assert statuses.total() > SIZE / 2, way
        # Tens of each; what else there is depends on the numbers that hypothesis finds in the code.
        assert set(statuses) >= {200, 400}, way


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_is_not_described_is_seen(way: str) -> None:
    description = described()
    del description["paths"]["/events/"]["post"]["responses"]["400"]
    with pytest.raises(FailureGroup):
        ask_all(description, {way: UNSIGNED[way]}, mode=MODES["otherwise"], most=20, seeds=[1])


@pytest.mark.usefixtures("_settings")
def test_a_status_of_500_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aevents.wire.require_media_type", lambda *_: 1 / 0)
    with pytest.raises(AssertionError):
        ask_all(described(), {"wsgi": UNSIGNED["wsgi"]}, mode=MODES["as described"], most=20, seeds=[1])
