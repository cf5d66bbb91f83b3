"""The page on moving to a broker, rehearsed: step by step, back and there again, while events are emitted.

Two services with a database each, as real processes, and a real Redis. In each step processes are replaced as
a rolling deploy does it: the new one is ready before the old one ends. The settings are those of the page.
"""

from __future__ import annotations

import contextlib
import signal
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from aevents import checks
from aevents.signature import new_secret
from tests import brokers, databases
from tests.crash_harness import HANDLERS, LEASE_S, reserved_port
from tests.crash_project.running import Launcher, Process
from tests.pages import DOCS, ROOT, Block, Page, write
from tests.peers import eventually

redis = pytest.importorskip("redis", reason="needs redis-py, the extra aevents[redis]")

_KEYS = [f"key-{n}" for n in range(10)]
_MORE = 30  # events, at the least, that are emitted while a step lasts
#: How many blocks of each file hold, in each step.
_BLOCKS = {
    "devops/events.py": (1, 2, 2, 3, 4, 5),
    "shop/settings.py": (1, 2, 2, 2, 2, 2),
    "orders/settings.py": (0, 1, 2, 2, 2, 2),
}


class Settings:
    """The settings of the page, as they are after each of its steps."""

    def __init__(self, page: Page) -> None:
        blocks = [block for block in page.steps if isinstance(block, Block) and block.file]
        self._texts = {
            name: [page.take(block).text for block in blocks if block.file == name] for name in _BLOCKS
        }
        assert {name: max(counts) for name, counts in _BLOCKS.items()} == {
            name: len(texts) for name, texts in self._texts.items()
        }

    def of(self, service: str, step: int) -> dict[str, Any]:
        """Return the `AEVENTS` of a service; dotted paths are what they name."""
        fleet = self._read("devops/events.py", step)
        # Step 0 of who receives is not on the page: it is step 1 without a broker.
        name = f"{service}/settings.py"
        aevents = self._read(name, max(step, 1) if service == "orders" else step)["AEVENTS"]
        return {
            key: fleet.get(value.rpartition(".")[2], {}) if str(value).startswith("devops.") else value
            for key, value in aevents.items()
        }

    def _read(self, name: str, step: int) -> dict[str, Any]:
        module: dict[str, Any] = {}
        exec("\n".join(self._texts[name][: _BLOCKS[name][step]]), module)  # noqa: S102 - our own page
        return module


class Fleet:
    """Both services at one step of the page."""

    def __init__(self, launcher: Launcher, settings: Settings, port: int, prefix: str) -> None:
        self.step = 0
        self._launcher = launcher
        self._settings = settings
        self._port = port
        self._prefix = prefix
        self._redis = redis.Redis.from_url(brokers.address("redis"))
        prepared = launcher.start("prepare", self._of("shop"), keys=_KEYS)
        assert prepared.wait() == 0, prepared.printed()
        self.looker = launcher.start("look", self._of("shop")).wait_until_ready()
        self.server = self.start_server()
        self.worker: Process | None = None
        self._emitter = self._start_emitter()

    def _of(self, service: str) -> dict[str, Any]:
        found = self._settings.of(service, self.step)
        url = f"http://127.0.0.1:{self._port}/events/"
        found["SERVICES"] = dict.fromkeys(found["SERVICES"], url)
        found["BROKERS"] = dict.fromkeys(found.get("BROKERS", {}), brokers.address("redis"))
        if "SUBSCRIPTIONS" in found:
            mapping: Mapping[str, Any] = found["SUBSCRIPTIONS"]
            found["SUBSCRIPTIONS"] = {
                {"order-placed": "placed"}.get(event_type, event_type): names
                for event_type, names in mapping.items()
            }
        return {
            **found,
            "STORE": "default" if service == "shop" else "orders",
            "TRANSPORTS": {"redis": {"PREFIX": self._prefix, "IDLE_S": 3}},
            "LIMITS": {"ATTEMPT_S": 2.0, "CONNECT_S": 0.5, "ANSWER_S": 1.8, "EXIT_S": 1.0},
            "SCHEDULE": [0.1] * 5000,
        }

    # Deploys

    def deploy_emitter(self, step: int) -> None:
        """Replace who emits by one with the settings of this step, and see that events are handled still."""
        self.step = step
        before, self._emitter = self._emitter, self._start_emitter()
        before.kill(signal.SIGTERM)
        self.flows()
        assert before.wait() == 0, before.printed()

    def deploy_receiver(self, step: int) -> None:
        """Replace the server, and the worker where there is one."""
        self.step = step
        before, self.server = self.server, self.start_server()
        assert before.stop() in (0, -15), before.printed()
        self.deploy_worker(step)
        self.flows()

    def deploy_worker(self, step: int) -> None:
        """Replace the worker, where there is or is to be one."""
        self.step = step
        before = self.worker
        if "LISTEN" in self._of("orders"):
            self.worker = self._start("listen", "orders", handlers={"placed": HANDLERS})
        if before is not None:
            assert before.stop() == 0, before.printed()

    def _start_emitter(self) -> Process:
        return self._start("emit-on", "shop", keys=_KEYS, seed=uuid.uuid4().int % 2**32, pause_s=0.1)

    def start_server(self) -> Process:
        return self._start("serve", "orders", port=self._port, handlers={"placed": HANDLERS})

    def _start(self, role: str, service: str, **arguments: Any) -> Process:
        process = self._launcher.start(role, self._of(service), lease_s=LEASE_S, **arguments)
        return process.wait_until_ready()

    def say(self, *verb: str) -> None:
        """`manage.py aevents <verb>` of the emitting service."""
        process = self._launcher.start("say", self._of("shop"), verb=verb)
        assert process.wait() == 0, process.printed()

    # What is to be seen

    @property
    def seen(self) -> dict[str, Any]:
        """How both stores stand."""
        facts: dict[str, Any] = self.looker.said[-1]
        return facts

    def looks(self) -> dict[str, Any]:
        """How both stores stand from now on."""
        count = len(self.looker.said)
        self.looker.wait_for(lambda: len(self.looker.said) >= count + 2, "a look")
        return self.seen

    def flows(self) -> None:
        """Wait until some more events were emitted, and all that were emitted by then are handled."""
        goal = self.looks()["emitted"] + _MORE
        self.looker.wait_for(lambda: self.seen["emitted"] >= goal, "more events")
        goal = self.seen["emitted"] * len(HANDLERS)
        with self._telling():
            self.looker.wait_for(lambda: self.seen["effects"] >= goal, f"{goal} effects", within_s=20.0)

    def wait_for_nothing(self, owed_to: str) -> None:
        with self._telling():
            self.looker.wait_for(lambda: not self.seen["owed"].get(owed_to), "nothing owed", within_s=20.0)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            raise AssertionError(f"step {self.step}: {self.seen}") from error

    def in_the_broker(self) -> int:
        """How many events were ever sent to the broker."""
        return int(self._redis.xlen(f"{self._prefix}placed"))

    def in_the_broker_with_key(self) -> int:
        """How many of them have a key."""
        return sum(b"ce_partitionkey" in fields for _, fields in self._redis.xrange(f"{self._prefix}placed"))

    def groups(self) -> list[str]:
        return [group["name"].decode() for group in self._redis.xinfo_groups(f"{self._prefix}placed")]

    def close(self) -> None:
        for key in self._redis.scan_iter(match=f"{self._prefix}*"):
            self._redis.delete(key)
        self._redis.close()

    def drain(self) -> dict[str, int]:
        """End who emits, let all that is owed arrive, and hold what was done against what was emitted."""
        assert self._emitter.stop() == 0, self._emitter.printed()
        relaying = self._start("worker", "shop")
        with self._telling():
            self.looker.wait_for(
                lambda: (
                    not self.seen["owed"]
                    and not self.seen["stored"]
                    and self.seen["effects"] == len(HANDLERS) * self.seen["emitted"]
                ),
                "all is handled",
                within_s=20.0,
            )
        assert relaying.stop() == 0
        assert self.worker is not None
        assert self.worker.stop() == 0
        judge = self._launcher.start("judge", self._of("shop"), handlers=HANDLERS)
        assert judge.wait() == 0, judge.printed()
        counts: dict[str, int] = judge.said[-1]["verdict"]
        return counts


def _count(process: Process | None, what: str) -> int:
    """Return how many a server or worker has counted, from now on."""
    assert process is not None
    told = len(process.said)
    process.wait_for(lambda: len(process.said) >= told + 2 or process.is_over, "what it has counted", 20.0)
    assert not process.is_over, f"{process.name} ended with {process.code}: {process.printed()}"
    return max(int(fact[what]) for fact in process.said if what in fact)


@pytest.fixture
def page() -> Page:
    return Page(DOCS / "moving.md")


@pytest.fixture
def settings_of_the_page(page: Page, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("AEVENTS_SECRET", new_secret())
    return Settings(page)


@pytest.fixture
def fleet(page: Page, settings_of_the_page: Settings, tmp_path: Path) -> Iterator[Fleet]:
    brokers.address("redis")
    write(tmp_path / "code", {**page.files(), "orders/__init__.py": ""})
    with contextlib.ExitStack() as stack:
        try:
            shop, orders = (
                stack.enter_context(databases.temporary("postgresql", name, tmp_path))
                for name in ("shop", "orders")
            )
        except databases.Unavailable as error:
            brokers.missing(str(error))
        port = stack.enter_context(reserved_port())
        late = "aevents.transports.redis orders.metrics tests.moving_roles"
        env = {"STORE_URL": shop, "ORDERS_URL": orders, "LATE": late}
        launcher = stack.enter_context(
            Launcher(tmp_path / "log", PYTHONPATH=f"{ROOT}:{tmp_path / 'code'}", **env)
        )
        found = Fleet(launcher, settings_of_the_page, port, f"t{uuid.uuid4().hex[:10]}.")
        stack.callback(found.close)
        yield found


def test_each_step_s_settings_pass_the_system_checks(settings_of_the_page: Settings, settings: Any) -> None:
    for step in range(6):
        for service in ("shop", "orders"):
            settings.AEVENTS = settings_of_the_page.of(service, step)
            assert checks.check_settings() == [], (service, step)


def test_nothing_is_lost_or_done_twice_on_the_way_to_the_broker_back_and_there_again(
    fleet: Fleet, page: Page
) -> None:
    # 1. Make ready
    fleet.deploy_receiver(1)
    fleet.deploy_emitter(1)

    # 2. Let the receivers listen
    fleet.deploy_worker(2)
    assert fleet.worker is not None
    logged = page.next("text").text
    eventually(lambda: logged in [fact.get("logged") for fact in fleet.worker.said])
    assert fleet.groups() == ["orders"]
    assert fleet.in_the_broker() == 0

    # 3. Send both ways: either of them is enough
    fleet.deploy_emitter(3)
    eventually(lambda: _count(fleet.server, "duplicate") + _count(fleet.worker, "duplicate") > _MORE)
    eventually(lambda: _count(fleet.worker, "received") > _MORE)
    assert _count(fleet.server, "received") > _MORE
    assert fleet.server.stop() in (0, -15)
    fleet.flows()

    # 4. Take HTTP out: what is still owed that way is delivered, and then nothing more comes that way
    assert fleet.looks()["owed"]["orders"] > 0
    fleet.deploy_emitter(4)
    assert fleet.looks()["owed"]["orders"] > 0
    fleet.server = fleet.start_server()
    fleet.wait_for_nothing(owed_to="orders")
    received = _count(fleet.server, "received")
    assert received > 0
    fleet.flows()  # all of it by the broker
    assert _count(fleet.server, "received") == received

    # The way back
    fleet.deploy_emitter(3)
    eventually(lambda: _count(fleet.server, "received") > received)
    fleet.deploy_emitter(2)
    fleet.wait_for_nothing(owed_to="bus")
    sent, keyed = fleet.in_the_broker(), fleet.in_the_broker_with_key()
    assert 0 < keyed < sent

    # And there again, what has a key waiting until it may go on
    fleet.say("pause", "bus", "--out")
    assert fleet.in_the_broker() == sent
    fleet.deploy_emitter(3)
    assert fleet.in_the_broker_with_key() == keyed
    assert fleet.looks()["owed"]["bus"] > 0
    fleet.say("resume", "bus", "--out")
    fleet.wait_for_nothing(owed_to="bus")
    assert fleet.in_the_broker_with_key() > keyed
    fleet.deploy_emitter(4)
    fleet.wait_for_nothing(owed_to="orders")

    # 5. Tidy up: nobody receives by HTTP any more
    assert fleet.server.stop() in (0, -15)
    fleet.deploy_worker(5)
    fleet.deploy_emitter(5)

    counts = fleet.drain()
    emitted = counts["emitted"]
    wrong = ("lost", "twice", "sent_after_rollback", "dead", "deliveries_left")
    assert {name: counts[name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert counts["effects"] == emitted * len(HANDLERS)
    assert emitted > 15 * _MORE
    page.assert_all_were_run()
