"""The long run of the fuzzers: `tox -e fuzz`, which prints what the slowest and the largest input cost.

AEVENTS_FUZZ_INPUTS and AEVENTS_FUZZ_REQUESTS say how many there are.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from pathlib import Path

import pytest
import requests
import schemathesis

from tests.fuzz import starting
from tests.fuzz.asking import MODES, Way, ask_all, described
from tests.fuzz.targets import KEYS
from tests.peers import Peer
from tests.process_project.running import serving, unwanted_in

pytestmark = pytest.mark.fuzz

INPUTS = int(os.environ.get("AEVENTS_FUZZ_INPUTS", "1000000"))
REQUESTS = int(os.environ.get("AEVENTS_FUZZ_REQUESTS", "100000"))
#: How many inputs each target gets, and how long they may be.
RUNS = {
    "decoder": (INPUTS, 4096),
    "verifier": (INPUTS, 4096),
    "receiver": (INPUTS // 4, 4096),
    "decoder of large ones": (INPUTS // 200, 1024 * 1024 + 4096),
    "receiver of large ones": (INPUTS // 200, 1024 * 1024 + 4096),
}
SERVERS = ("uvicorn", "uvicorn with the short way", "gunicorn gthread")
CASES = 250  # of one seed


def test_a_million_inputs_break_no_promise(tmp_path: Path) -> None:
    pytest.importorskip("atheris")  # there is none for every system
    for name, (number, most_bytes) in RUNS.items():
        began = time.monotonic()
        folder = tmp_path / name.replace(" ", "-")
        executed = starting.fuzz(name.partition(" ")[0], folder, inputs=number, most_bytes=most_bytes)
        assert executed >= number
        print(f"\n{name}: {executed} inputs of up to {most_bytes} bytes in {time.monotonic() - began:.0f} s")
    # What they led to is measured without the fuzzer, which makes everything slower.
    print(starting.measure(tmp_path))


class Client:
    """Sends requests to one server, on connections that it keeps, and knows which took longest."""

    def __init__(self, session: requests.Session) -> None:
        self._session = session
        self.slowest_s = 0.0
        session.trust_env = False  # no proxy of the environment

    def send(self, request: requests.PreparedRequest) -> schemathesis.Response:
        response = self._session.send(request, timeout=30, allow_redirects=False)
        self.slowest_s = max(self.slowest_s, response.elapsed.total_seconds())
        return schemathesis.Response.from_any(response)


def test_a_hundred_thousand_requests_get_answers_that_are_described() -> None:
    env = {"DJANGO_SETTINGS_MODULE": "tests.fuzz.settings"}
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(Peer())
        services = {name: stack.enter_context(serving(name, peer, env=env)) for name in SERVERS}
        clients = {name: Client(stack.enter_context(requests.Session())) for name in SERVERS}
        ways = {
            f"{name}, {who}": Way(clients[name].send, keys, f"http://127.0.0.1:{services[name].port}")
            for name in SERVERS
            for who, keys in {"unsigned": (), "signed": KEYS[:1]}.items()
        }
        total: Counter[str] = Counter()
        seeds = iter(range(REQUESTS))
        while total.total() < REQUESTS:
            seed = next(seeds)
            for mode in MODES.values():
                counts = ask_all(described(), ways, mode=mode, most=CASES, seeds=[seed])
                total.update({f"{way}: {status}": n for way, c in counts.items() for status, n in c.items()})
        print(f"\n{total.total()} requests")
        print("\n".join(f"{name:48} {number}" for name, number in sorted(total.items())))
        for name, client in clients.items():
            print(f"{name}: the slowest answer came after {1000 * client.slowest_s:.0f} ms")
        for service in services.values():
            assert unwanted_in(service.stop()) == []
