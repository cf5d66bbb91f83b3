"""Requests by the endpoint's own description: OpenAPI in, requests and what is wrong with an answer out."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi import checks as by_description

from aevents import wire
from aevents.event import Message

DESCRIPTION = Path(__file__).parents[2] / "docs" / "openapi.json"
MODES = {"as described": GenerationMode.POSITIVE, "otherwise": GenerationMode.NEGATIVE}
_CHECKS = [
    by_description.status_code_conformance,
    by_description.content_type_conformance,
    by_description.response_headers_conformance,
    by_description.response_schema_conformance,
]
AnyCase: TypeAlias = "Case[Any]"


@dataclass(frozen=True)
class Way:
    """Where a request goes, and with which keys it is signed, if with any."""

    send: Callable[[requests.PreparedRequest], schemathesis.Response]
    keys: Sequence[bytes] = ()
    url: str = "http://testserver"


def described() -> dict[str, Any]:
    """Return the description, a copy of your own."""
    found: dict[str, Any] = json.loads(DESCRIPTION.read_text())
    return found


def naming(*event_types: str) -> dict[str, Any]:
    """Return the description with these types among those that are made up."""
    found = copy.deepcopy(described())
    schemas = found["components"]["schemas"]
    name = {"anyOf": [{"enum": list(event_types)}, {"$ref": "#/components/schemas/Name"}]}
    schemas["Event"]["properties"]["event_type"] = name
    schemas["CloudEvent"]["properties"]["type"] = name
    return found


def ask_all(
    description: dict[str, Any],
    ways: Mapping[str, Way],
    *,
    mode: GenerationMode,
    most: int,
    seeds: Iterable[int],
) -> dict[str, Counter[int]]:
    """Send up to `most` requests for each of `seeds`, each in all `ways`; count the statuses of the answers.

    Raises what is wrong with an answer: a status, header or body that is not described, or a status of 500
    and above that is no handler's own 503. The same seed makes the same requests.
    """
    operation = schemathesis.openapi.from_dict(description)["/events/"]["POST"]
    counts: dict[str, Counter[int]] = {name: Counter() for name in ways}
    strategy = operation.as_strategy(mode)
    for seed in seeds:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=most,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def ask(case: AnyCase) -> None:
            for name, way in ways.items():
                _ask(case, way, counts[name])

        ask()
    return counts


def _ask(case: AnyCase, way: Way, counts: Counter[int]) -> None:
    try:
        request = _prepared(case, way.url, way.keys)
    except (requests.exceptions.InvalidHeader, UnicodeError):  # no client would send it
        return
    response = way.send(request)
    counts[response.status_code] += 1
    assert response.status_code < 500 or _is_a_handler_s_own(response), response.content
    case.validate_response(response, checks=_CHECKS)


def reply(
    request: requests.PreparedRequest, status: int, headers: Mapping[str, str], body: bytes
) -> schemathesis.Response:
    """Return an answer as schemathesis reads it."""
    listed = {name: [value] for name, value in headers.items()}
    return schemathesis.Response(status, listed, body, request, elapsed=0.0, verify=False)


def _prepared(case: AnyCase, url: str, keys: Sequence[bytes]) -> requests.PreparedRequest:
    request = requests.Request(**case.as_transport_kwargs(base_url=url)).prepare()
    body = request.body or b""
    request.body = body = body.encode() if isinstance(body, str) else bytes(body)
    if keys:
        headers = {name.lower(): text(value) for name, value in request.headers.items()}
        headers["webhook-id"] = headers.get("webhook-id", "").replace(".", "") or "1"
        stamped = wire.stamp(Message(headers, body), keys)
        for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
            request.headers[name] = stamped[name]
    return request


def text(value: Any) -> str:
    """Return a header's text; schemathesis may have made bytes of it."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _is_a_handler_s_own(response: schemathesis.Response) -> bool:
    return response.status_code == 503 and b"These handlers failed" in response.content
