"""What is unsafe is said by a check, and refused at run time: secrets, who may send, plain HTTP, formats."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from aevents import cloudevents, emit
from aevents.checks import check_deployment, check_settings
from aevents.event import Message
from aevents.signature import key_of, new_secret
from tests.peers import Fleet, Peer

ROOT = Path(__file__).parent.parent
OLD, NEW = new_secret(), new_secret()
SHORT = "whsec_c2hvcnQ="


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


def ids(settings: Any, **keys: Any) -> set[str]:
    settings.AEVENTS = {"SERVICE": "accounts", "ENABLED": True, "UNSIGNED": "accept", **keys}
    found = check_settings()
    for message in found:
        assert message.hint
        assert OLD not in str(message)
        assert SHORT not in str(message)
    return {str(message.id).removeprefix("aevents.") for message in found}


# The checks


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"SECRETS": [NEW, OLD]}, set()),
        ({"SECRETS": [SHORT]}, {"E010"}),
        ({"SECRETS": [""]}, {"E010"}),
        ({"SECRETS": OLD}, {"E010"}),
        ({"SECRETS": [OLD, OLD]}, {"E010"}),
        ({"SECRETS": [OLD], "SERVICES": {"b": {"URL": "https://b/", "SECRETS": [OLD]}}}, {"E010"}),
        ({"SERVICES": {"b": {"URL": "https://b/", "SECRETS": [OLD]}}, "SENDERS": {"x-*": ["b"]}}, set()),
        ({"SECRETS": [OLD], "SERVICES": {"b": "https://b/"}, "SENDERS": {"x-*": ["b"]}}, {"E011"}),
        ({"SENDERS": {"x": ["accounts"]}}, set()),
        ({"SENDERS": {"x": "accounts"}}, {"E011"}),
        ({"SENDERS": ["accounts"]}, {"E011"}),
        ({"SERVICES": {"b": {"URL": "https://b/", "FORMAT": "cloudevents"}}}, set()),
        ({"SERVICES": {"b": {"URL": "https://b/", "FORMAT": "xml"}}}, {"E003"}),
        ({"SERVICES": {"b": {"URL": "http://b/", "PLAIN": "yes"}}}, {"E003"}),
    ],
)
def test_a_check_names_what_is_wrong_with_trust(settings: Any, keys: Any, expected: set[str]) -> None:
    assert ids(settings, **keys) == expected


@pytest.mark.parametrize(
    ("url", "options", "is_found"),
    [
        ("http://b/events/", {}, True),
        ("http://10.0.0.1/events/", {}, True),
        ("http://b/events/", {"PLAIN": True}, False),
        ("https://b/events/", {}, False),
        ("http://localhost:8000/", {}, False),
        ("http://b.localhost/", {}, False),
        ("http://127.8.8.8/", {}, False),
        ("http://[::1]:80/", {}, False),
    ],
)
def test_a_deploy_is_warned_of_plain_http_and_of_no_secret(
    settings: Any, url: str, options: dict[str, Any], is_found: bool
) -> None:
    services = {"b": {"URL": url, **options}}
    for secrets, missing in (([], ["aevents.W008"]), ([OLD], [])):
        settings.AEVENTS = {"SERVICES": services, "SECRETS": secrets}
        assert [m.id for m in check_deployment()] == missing + ["aevents.W009"] * is_found
        settings.DEBUG = True
        assert check_deployment() == []
        settings.DEBUG = False


def test_they_are_deploy_checks() -> None:
    code = (
        "import django; django.setup();"
        "from django.core.management import call_command; call_command('check', *{})"
    )
    shown = [
        subprocess.run(
            [sys.executable, "-c", code.format(more)],
            cwd=ROOT,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        for more in ([], ["--deploy"])
    ]
    assert ["aevents.W008" in text for text in shown] == [False, True]


# At run time


def test_nothing_goes_in_the_open_to_another_host(settings: Any, fleet: Fleet) -> None:
    fleet(SERVICES={"b": "http://192.0.2.1:9/"}, SUBSCRIPTIONS={"*": ["b"]})
    (result,) = emit("noted", {}).results
    assert (result.outcome, result.attempts) == ("failed", 0)
    assert "http:// to another host" in str(result.error)


def test_nothing_goes_unsigned_where_a_secret_is_wrong(fleet: Fleet) -> None:
    with Peer() as peer:
        fleet(payments=peer, SECRETS=[SHORT])
        (result,) = emit("noted", {}).results
        assert result.outcome == "failed"
        assert "it holds 5 bytes, not 24 to 64" in str(result.error)
        assert peer.requests == []


@pytest.mark.parametrize("program", ["server.py", "manage.py"])
def test_a_server_does_not_start_with_a_wrong_secret_and_a_command_does(tmp_path: Path, program: str) -> None:
    (tmp_path / "bad.py").write_text(
        f"from tests.settings import *\nAEVENTS = {{**AEVENTS, 'SECRETS': [{SHORT!r}]}}\n"
    )
    (tmp_path / program).write_text("import django; django.setup(); print('started')")
    done = subprocess.run(
        [sys.executable, str(tmp_path / program)],
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "bad", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if program == "manage.py":
        assert "started" in done.stdout
    else:
        assert "ImproperlyConfigured: AEVENTS['SECRETS'][0] is no secret" in done.stderr
    assert SHORT not in done.stderr


def test_a_new_secret_is_printed_without_a_store() -> None:
    printed = [io.StringIO(), io.StringIO()]
    for out in printed:
        call_command("aevents", "secret", stdout=out)
    first, second = (out.getvalue().strip() for out in printed)
    assert first != second
    assert len(key_of(first)) == 32


def test_a_service_with_that_format_gets_structured_cloudevents_and_the_others_our_own(fleet: Fleet) -> None:
    with Peer() as ours, Peer() as theirs:
        services = {"ours": ours.url, "theirs": {"URL": theirs.url, "FORMAT": "cloudevents"}}
        fleet(SERVICES=services, SUBSCRIPTIONS={"*": list(services)}, SECRETS=[OLD])
        emission = emit("noted", {"n": 1}, key="k")
        assert emission.delivered
        (plain,), (structured,) = ours.requests, theirs.requests
        assert plain.headers["content-type"] == "application/json"
        assert structured.headers["content-type"] == cloudevents.STRUCTURED
        assert structured.headers["webhook-signature"].startswith("v1,")
        assert not [name for name in structured.headers if name.startswith("ce-")]
        event = cloudevents.decode(Message(structured.headers, structured.body))
        assert (event.id, event.type, event.payload, event.key) == (emission.id, "noted", {"n": 1}, "k")


def test_a_wrong_format_is_said_and_nothing_is_sent(fleet: Fleet) -> None:
    with Peer() as peer:
        fleet(SERVICES={"b": {"URL": peer.url, "FORMAT": "xml"}}, SUBSCRIPTIONS={"*": ["b"]})
        (result,) = emit("noted", {}).results
        assert (result.outcome, peer.requests) == ("failed", [])
        assert "FORMAT" in str(result.error)
