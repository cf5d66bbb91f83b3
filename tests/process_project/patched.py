"""A process whose threads gevent has patched: what is emitted and received there, and what the checks say."""

# ruff: noqa: E402 - gevent patches before anything else is imported
from gevent import monkey

monkey.patch_all()

import asyncio
import json

import django
from django.core import checks
from django.test import Client

django.setup()

from aevents import Emission, aemit, emit, flush


def say(name: str, emission: Emission) -> None:
    (result,) = emission.results
    print(name, result.outcome, result.error)


say("emit", emit("told-sync", {}))
say("aemit", asyncio.run(aemit("told-async", {})))
print("flush", flush())
print("check", [message.id for message in checks.run_checks() if "gevent" in message.msg])
answer = Client().post("/events/", json.dumps({"event_type": "asked", "payload": {}}), "application/json")
print("received", answer.status_code)
