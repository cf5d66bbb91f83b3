"""Signing is turned on, and a secret changed, deploy by deploy: at no moment does a service refuse another.

A fleet is deployed service by service, so at each step any sender may be of the step before, and so may any
receiver. What the documentation tells is done here; docs/settings.md, "SECRETS". test_rehearsal.py does the
same with servers that are stopped and started.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import pairwise, product
from typing import Any

import pytest

from aevents import batch, cloudevents, routes, wire
from aevents.event import Event, Message, new_id
from aevents.receiver import receive
from aevents.signature import new_secret

OLD, NEW, OWN = new_secret(), new_secret(), new_secret()
Step = dict[str, Any]
TURNED_ON: list[Step] = [
    {"UNSIGNED": "accept"},
    {"UNSIGNED": "accept", "SECRETS": [OLD]},
    {"UNSIGNED": "warn", "SECRETS": [OLD]},
    {"UNSIGNED": "refuse", "SECRETS": [OLD]},
]
ROTATED: list[Step] = [
    {"UNSIGNED": "refuse", "SECRETS": [OLD]},
    {"UNSIGNED": "refuse", "SECRETS": [NEW, OLD]},
    {"UNSIGNED": "refuse", "SECRETS": [NEW]},
]

# `between`: the secrets in the entry of the other service
MOVED: list[Step] = [
    {"SECRETS": [OLD]},
    {"SECRETS": [OLD], "between": [OWN, OLD]},
    {"SECRETS": [OLD], "between": [OWN]},
    {"between": [OWN]},
    {"between": [OWN], "SENDERS": {"*": ["accounts"]}},
]
PLANS = {"turned on": TURNED_ON, "rotated": ROTATED, "moved": MOVED}


def a_service(settings: Any, step: Step, name: str, other: str) -> None:
    services = {other: {"URL": "https://other.internal/", "SECRETS": step.get("between", [])}}
    keys = {key: value for key, value in step.items() if key.isupper()}
    settings.AEVENTS = {"SERVICE": name, "STORE": None, "ENABLED": True, "SERVICES": services, **keys}


def sent(form: str) -> Message:
    event = Event(new_id(), "noted", b'{"n":1}', "accounts", datetime.now(UTC))
    made = {
        "single": wire.encode,
        "structured": cloudevents.encode,
        "batch": lambda event: batch.encode([event]),
    }[form](event)
    destination = routes.destination_named("payments")
    assert destination is not None
    assert destination.mistake == ""
    return Message(wire.stamp(made, destination.keys), made.body)


@pytest.mark.parametrize("form", ["single", "structured", "batch"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_nobody_is_refused_at_any_step_of_the_plan(settings: Any, plan: list[Step], form: str) -> None:
    for steps in pairwise(plan):
        for of_sender, of_receiver in product(steps, steps):
            a_service(settings, of_sender, "accounts", "payments")
            message = sent(form)
            a_service(settings, of_receiver, "payments", "accounts")
            answer = asyncio.run(receive(message, peer="127.0.0.1", at_home=True))
            assert (answer.status, answer.content.get("events", [])) == (200, []), (of_sender, of_receiver)


@pytest.mark.parametrize("form", ["single", "structured", "batch"])
def test_at_the_end_the_old_ways_are_refused(settings: Any, form: str) -> None:
    for before, *_, after in PLANS.values():
        a_service(settings, before, "accounts", "payments")
        message = sent(form)
        a_service(settings, after, "payments", "accounts")
        assert asyncio.run(receive(message, peer="127.0.0.1", at_home=True)).status == 401
