"""What processes, databases and services do to each other at their worst, and what holds all the same."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connections, transaction

from aevents import status
from aevents import store as stores
from aevents.models import State
from aevents.store import Entry, Owed
from aevents.tables import IN, OUT
from tests import crash_harness, databases
from tests.crash_harness import Plan
from tests.crash_project.running import Launcher
from tests.ledger import Ledger
from tests.peers import (
    Exchange,
    Peer,
    answers,
    answers_after,
    answers_when_released,
    eventually,
    hangs,
)
from tests.project.models import Note
from tests.test_store import an_event

AT_ONCE = [0.05] * 50
_WITHIN_S = 60.0  # generous, as all of these wait for processes


@pytest.fixture(scope="module")
def _launchers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Launcher]]:
    with contextlib.ExitStack() as stack:
        found: dict[str, Launcher] = {}

        def launcher_of(store: str) -> Launcher:
            if store not in found:
                folder = tmp_path_factory.mktemp(store)
                environment = databases.environment(store)
                found[store] = stack.enter_context(Launcher(folder, **environment))
            return found[store]

        yield launcher_of


@pytest.fixture
def launcher(store: str, _launchers: Callable[[str], Launcher]) -> Iterator[Launcher]:
    """What starts processes that have the database of the fixture `store`; they end with the test."""
    found = _launchers(store)
    yield found
    found.end_all()


def shop(services: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the settings of a service that sends everything to these services."""
    urls = {name: getattr(service, "url", service) for name, service in services.items()}
    return {
        "SERVICE": "shop",
        "UNSIGNED": "accept",
        "OUTBOX": True,
        "INBOX": True,
        "SERVICES": urls,
        "SUBSCRIPTIONS": {"*": list(urls)},
        "SCHEDULE": AT_ONCE,
        **more,
    }


def owe(direction: int, target: str, *payloads: bytes, event_type: str = "user-created") -> list[str]:
    """Store an event for each payload, owed to the target; return their ids."""
    events = [an_event(event_type, data=payload) for payload in payloads]
    stores.add([Entry(direction, event, (Owed(target),)) for event in events])
    return [event.id for event in events]


def numbered(count: int) -> list[bytes]:
    return [b'{"n":%d}' % n for n in range(count)]


def effects(ledger: Ledger) -> Counter[str]:
    return Counter(Note.objects.using(ledger.alias).values_list("text", flat=True))


def once(handler: str, count: int) -> Counter[str]:
    return Counter(f"{handler} {n}" for n in range(count))


# One process is held up


def test_a_worker_that_stood_still_past_its_lease_changes_nothing_and_goes_on(
    launcher: Launcher, ledger: Ledger
) -> None:
    with Peer(answers_when_released(200)) as peer:
        settings = shop({"payments": peer})
        owe(OUT, "payments", b'{"n":1}')
        first = launcher.start("worker", settings)
        peer.wait_for(1)
        first.kill(signal.SIGSTOP)
        ledger.make_due()  # as its lease ends
        second = launcher.start("worker", settings)
        peer.wait_for(2)

        peer.release()
        ledger.is_empty()
        first.kill(signal.SIGCONT)
        assert second.stop() == 0
        owe(OUT, "payments", b'{"n":2}')

        peer.wait_for(3)
        ledger.is_empty()
        assert first.stop() == 0
    assert [request.payload["n"] for request in peer.requests] == [1, 1, 2]
    assert len({request.id for request in peer.requests}) == 2


def test_what_a_worker_that_stood_still_sends_twice_has_its_effect_once(
    launcher: Launcher, ledger: Ledger
) -> None:
    port = crash_harness.free_port()
    receiver = launcher.start(
        "receiver", shop({}, SERVICE="orders"), port=port, handlers={"user-created": ["note"]}
    )
    receiver.wait_until_ready()
    with Peer(_passes_on(port)) as peer:
        settings = shop({"payments": peer})
        owe(OUT, "payments", b'{"n":0}')
        first = launcher.start("worker", settings)
        peer.wait_for(1)
        first.kill(signal.SIGSTOP)
        ledger.make_due(direction=OUT)
        launcher.start("worker", settings)
        peer.wait_for(2)
        peer.release()
        ledger.is_empty()
        first.kill(signal.SIGCONT)
        assert first.stop() == 0
    assert effects(ledger) == once("note", 1)
    assert len(peer.requests) == 2


def _passes_on(port: int) -> Callable[[Exchange], Any]:
    """Hold each request until released, then hand it to the service at `port` and give back its status."""
    import asyncio
    import http.client

    def post(exchange: Exchange) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_WITHIN_S)
        with contextlib.closing(connection):
            headers = {k: v for k, v in exchange.request.headers.items() if k != "host"}
            connection.request("POST", "/events/", exchange.request.body, headers)
            return connection.getresponse().status

    async def behave(exchange: Exchange) -> None:
        await exchange.peer.released.wait()
        await exchange.answer(await asyncio.to_thread(post, exchange))

    return behave


@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
def test_a_handler_that_stood_still_past_its_lease_has_its_effect_once(
    launcher: Launcher, ledger: Ledger
) -> None:
    settings = shop({}, LIMITS={"ATTEMPT_S": 0.3})
    owe(IN, "stands_still", b'{"n":0}')
    both = {"user-created": ["stands_still", "note"]}
    workers = [launcher.start("worker", settings, handlers=both, lease_s=1.0)]
    eventually(lambda: workers[0].is_stopped, within_s=_WITHIN_S)
    row = ledger.row()
    assert row.lease != ""
    eventually(lambda: status.clock_ms() > row.due_ms, within_s=_WITHIN_S, what="the end of its lease")

    for n in range(3):  # others look, and what is locked by a transaction is not free
        owe(IN, "note", b'{"n":%d}' % n)
        workers.append(launcher.start("worker", settings, handlers=both, lease_s=1.0))
        ledger.has(1)
    workers[0].kill(signal.SIGCONT)

    ledger.is_empty()
    assert effects(ledger) == once("note", 3) + once("stands_still", 1)
    assert [worker.stop() for worker in workers] == [0] * 4


def test_a_worker_that_is_told_to_end_lets_a_hundred_arrive_once(launcher: Launcher, ledger: Ledger) -> None:
    with Peer(answers_when_released(200)) as peer:
        ids = owe(OUT, "payments", *numbered(100))
        worker = launcher.start("worker", shop({"payments": peer}, LIMITS={"IN_FLIGHT": 100, "CALL_S": 60}))
        peer.wait_for(100, within_s=_WITHIN_S)

        worker.kill(signal.SIGTERM)
        owe(OUT, "payments", b'{"n":100}')  # too late for it
        peer.release()

        assert worker.wait() == 0, worker.printed()
    assert sorted(request.id for request in peer.requests) == sorted(ids)
    row = ledger.row()
    assert (row.lease, row.attempts, row.losses) == ("", 0, 0)


def test_a_worker_that_is_told_to_end_gives_back_what_does_not_end_in_time(
    launcher: Launcher, ledger: Ledger
) -> None:
    with Peer(hangs) as peer:
        owe(OUT, "payments", *numbered(100))
        limits = {"IN_FLIGHT": 50, "CALL_S": 60, "DRAIN_S": 0.5, "ATTEMPT_S": 60}
        worker = launcher.start("worker", shop({"payments": peer}, LIMITS=limits))
        peer.wait_for(50, within_s=_WITHIN_S)

        assert worker.stop() == 0, worker.printed()
    rows = ledger.rows()
    assert len(rows) == 100
    assert {(row.lease, row.state, row.attempts, row.losses) for row in rows} == {("", State.OWED, 0, 0)}


def test_a_handler_that_kills_its_process_ends_alone_as_a_dead_letter(
    launcher: Launcher, ledger: Ledger
) -> None:
    owe(IN, "deadly", *numbered(10), b'{"n":666}', *(b'{"n":%d}' % n for n in range(10, 20)))
    settings = shop({})
    deaths = 0

    def is_over() -> bool:
        left = ledger.rows()
        return len(left) == 1 and left[0].state == State.DEAD

    while not is_over():
        assert deaths < 60
        worker = launcher.start("worker", settings, handlers={"user-created": ["deadly"]})
        eventually(lambda: worker.is_over or is_over(), within_s=_WITHIN_S, what="its death")  # noqa: B023
        if worker.is_over:
            assert worker.code == -signal.SIGKILL, worker.printed()
            deaths += 1
            ledger.make_due()  # as the leases end
        else:
            assert worker.stop() == 0

    row = ledger.row()
    assert bytes(row.event.payload or b"") == b'{"n":666}'
    assert "ended without a word" in row.error
    assert effects(ledger) == once("deadly", 20)


# Many at once


def test_eight_relays_send_nothing_twice_and_try_what_fails_as_often_as_the_schedule_says(
    launcher: Launcher, ledger: Ledger
) -> None:
    with Peer(answers_after(0.01)) as well, Peer(answers(503, {"status": "failed"})) as failing:
        settings = shop({"well": well, "failing": failing}, SCHEDULE=[0.05] * 6)
        ids = owe(OUT, "well", *numbered(300))
        failing_ids = owe(OUT, "failing", *numbered(5))
        workers = [launcher.start("worker", settings) for _ in range(8)]

        ledger.has(5, state=State.DEAD)
        eventually(lambda: len(ledger.rows()) == 5, within_s=_WITHIN_S)
        assert [worker.stop() for worker in workers] == [0] * 8
    assert sorted(request.id for request in well.requests) == sorted(ids)
    assert Counter(request.id for request in failing.requests) == dict.fromkeys(failing_ids, 7)


@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
def test_of_two_who_commit_in_inverse_order_neither_is_lost(launcher: Launcher, ledger: Ledger) -> None:
    with Peer() as peer:
        launcher.start("worker", shop({"payments": peer})).wait_until_ready()
        is_stored, may_commit = threading.Event(), threading.Event()

        def first() -> None:
            with transaction.atomic(using=ledger.alias):
                owe(OUT, "payments", b'{"n":1}')
                is_stored.set()
                may_commit.wait(_WITHIN_S)
            connections[ledger.alias].close()

        thread = threading.Thread(target=first)
        thread.start()
        is_stored.wait(_WITHIN_S)
        owe(OUT, "payments", b'{"n":2}')
        peer.wait_for(1)
        ledger.is_empty()  # nobody waits for the older one
        may_commit.set()
        thread.join()

        peer.wait_for(2)
        ledger.is_empty()
    assert [request.payload["n"] for request in peer.requests] == [2, 1]


@pytest.mark.parametrize("store", ["sqlite", "postgresql"], indirect=True)
def test_code_that_does_not_know_a_target_leaves_it_to_the_code_that_does(
    launcher: Launcher, ledger: Ledger
) -> None:
    with Peer() as old_peer, Peer() as new_peer:
        old = launcher.start("worker", shop({"old": old_peer}), handlers={"user-created": ["note"]})
        owe(OUT, "new", *numbered(3))
        owe(IN, "slow", *numbered(3))
        for n in range(3):
            owe(OUT, "old", b'{"n":%d}' % n)
            owe(IN, "note", b'{"n":%d}' % n)
            old_peer.wait_for(n + 1)
            ledger.has(6)
        assert {(row.attempts, row.losses, row.lease) for row in ledger.rows()} == {(0, 0, "")}

        both = shop({"old": old_peer, "new": new_peer})
        new = launcher.start("worker", both, handlers={"user-created": ["note", "slow"]})

        ledger.is_empty()
        assert (old.stop(), new.stop()) == (0, 0)
    assert len(new_peer.requests) == 3
    assert effects(ledger) == once("note", 3) + once("slow", 3)


@pytest.mark.parametrize("store", ["sqlite", "postgresql"], indirect=True)
def test_one_dead_service_of_fifty_changes_nothing_for_the_others(launcher: Launcher, ledger: Ledger) -> None:
    with Peer() as peer, Peer(hangs) as dead:
        names = [f"s{n}" for n in range(49)]
        urls = {name: peer.url.replace("/events/", f"/{name}/") for name in names}
        limits = {"ATTEMPT_S": 60, "IN_FLIGHT": 4}
        settings = shop({**urls, "dead": dead}, LIMITS=limits)
        worker = launcher.start("emitter", settings, event_type="user-created", count=20, stays=True)

        peer.wait_for(49 * 20, within_s=_WITHIN_S)
        ledger.has(20)
        worker.kill()
    assert Counter((r.path, r.payload["n"]) for r in peer.requests) == {
        (f"/{name}/", n): 1 for name in names for n in range(20)
    }
    assert {row.target for row in ledger.rows()} == {"dead"}
    assert 0 < len(dead.requests) <= 4


# A service that is slow, or away


@pytest.mark.parametrize("store", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("inbox", [True, False], ids=["inbox", "no inbox"])
def test_after_a_stall_a_slow_receiver_works_off_its_backlog_and_runs_nothing_twice(
    launcher: Launcher, ledger: Ledger, inbox: bool
) -> None:
    # A quarter of the defaults, as the stall is a quarter of 8 s.
    limits = {"CALL_S": 1.25, "ATTEMPT_S": 2.5, "CONNECT_S": 0.5, "ANSWER_S": 0.5, "HANDLER_THREADS": 2}
    port = crash_harness.free_port()
    receiver = launcher.start(
        "receiver",
        shop({}, SERVICE="orders", INBOX=inbox, LIMITS=limits),
        port=port,
        handlers={"user-created": ["slow"]},
    )
    receiver.wait_until_ready()
    settings = shop({"orders": f"http://127.0.0.1:{port}/events/"}, LIMITS=limits)
    emitter = launcher.start(
        "emitter", settings, event_type="user-created", count=100, pause_s=0.05, stays=True
    )
    emitter.wait_for(lambda: len(emitter.said) >= 20, "20 events", _WITHIN_S)

    receiver.kill(signal.SIGSTOP)
    threading.Event().wait(2.0)
    receiver.kill(signal.SIGCONT)

    emitter.wait_for(lambda: len(emitter.said) >= 100, "100 events", _WITHIN_S)
    eventually(lambda: not ledger.rows(), within_s=_WITHIN_S, what="the backlog is worked off")
    assert effects(ledger) == once("slow", 100)


@pytest.mark.parametrize("store", ["sqlite", "postgresql"], indirect=True)
def test_an_outage_adds_a_fifth_of_requests_at_most_and_its_end_brings_no_flood(
    launcher: Launcher, ledger: Ledger
) -> None:
    in_flight, count = 4, 300
    with Peer(answers(503)) as peer:
        settings = shop({"payments": peer}, LIMITS={"IN_FLIGHT": in_flight}, SCHEDULE=[1.0, 2.0, 4.0, 4.0])
        emitter = launcher.start(
            "emitter", settings, event_type="user-created", count=count, pause_s=0.03, stays=True
        )
        worker = launcher.start("worker", settings)

        emitter.wait_for(lambda: len(emitter.said) >= count * 2 // 3, "the outage", _WITHIN_S)
        during_the_outage = len(peer.requests)
        peer.most_at_once = 0
        peer.behave(answers_after(0.01))
        emitter.wait_for(lambda: len(emitter.said) >= count, "all events", _WITHIN_S)
        eventually(lambda: not ledger.rows(), within_s=_WITHIN_S, what="all has arrived")
        assert worker.stop() == 0
    assert {request.payload["n"] for request in peer.requests} == set(range(count))
    assert during_the_outage > 0
    assert len(peer.requests) - count <= count / 5
    assert peer.most_at_once <= 2 * in_flight  # a lane in each process


# The database fails


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_connections_that_are_ended_again_and_again_lose_nothing(kind: str, tmp_path: Path) -> None:
    _survives(kind, tmp_path, _end_connections, troubles=8)


def _end_connections(urls: Sequence[str]) -> None:
    for url in urls:
        server, _, name = url.rpartition("/")
        if urlsplit(url).scheme == "postgresql":
            is_ours = f"datname = '{name}' AND backend_type = 'client backend'"
            databases._run(
                server,
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {is_ours}",  # noqa: S608
            )
        else:
            select = f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"  # noqa: S608
            gone = "DECLARE CONTINUE HANDLER FOR 1094 BEGIN END"  # ended by itself meanwhile
            databases._run(
                server, f"BEGIN NOT ATOMIC {gone}; FOR one IN ({select}) DO KILL one.id; END FOR; END"
            )


def test_postgresql_restarted_in_the_midst_of_traffic_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _private_postgresql() as (url, restart):
        monkeypatch.setenv("AEVENTS_TEST_POSTGRESQL", url)
        _survives("postgresql", tmp_path, lambda _: restart(), troubles=3)


def test_mariadb_restarted_in_the_midst_of_traffic_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _private_mariadb() as (url, restart):
        monkeypatch.setenv("AEVENTS_TEST_MARIADB", url)
        _survives("mariadb", tmp_path, lambda _: restart(), troubles=3)


def _survives(kind: str, folder: Path, trouble: crash_harness.Trouble, troubles: int) -> None:
    seed = random.getrandbits(32)
    plan = Plan(kind, events=200, kills=0, seed=seed, troubles=troubles, backlog=200)
    try:
        verdict = crash_harness.run(plan, folder, trouble=trouble)
    except databases.Unavailable as error:
        (pytest.fail if databases.is_required(kind) else pytest.skip)(str(error))
    print(verdict)
    assert not verdict.problems, "\n".join([str(verdict), *verdict.problems])


Restart = Callable[[], None]


@contextlib.contextmanager
def _private_postgresql() -> Iterator[tuple[str, Restart]]:
    """A server of this test's own: its URL, and what kills it hard and starts it again."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    ctl = shutil.which("pg_ctl") or (str(found[-1]) if found else None)
    if ctl is None:
        pytest.skip("no pg_ctl here")
    initdb = str(Path(ctl).with_name("initdb"))
    with _folder_of("postgres") as (folder, as_user):
        port = crash_harness.free_port()
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        start = [*as_user, ctl, "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", options, "start"]
        stop = [*as_user, ctl, "-D", f"{folder}/data", "-w", "-m", "immediate", "stop"]
        _do([*as_user, initdb, "-D", f"{folder}/data", "-U", "postgres", "--auth=trust", "--no-sync"])
        _do(start)

        def restart() -> None:
            _do(stop)
            _do(start)

        try:
            yield f"postgresql://postgres@127.0.0.1:{port}", restart
        finally:
            _do(stop)


@contextlib.contextmanager
def _private_mariadb() -> Iterator[tuple[str, Restart]]:
    install = shutil.which("mariadb-install-db")
    server = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    if install is None or server is None:
        pytest.skip("no mariadbd here")
    with _folder_of("mysql") as (folder, as_user):
        port = crash_harness.free_port()
        where = [f"--datadir={folder}/data", "--no-defaults"]
        _do([*as_user, install, where[1], where[0], "--auth-root-authentication-method=normal"])
        command = [
            *(*as_user, server, where[1], where[0], f"--port={port}", "--bind-address=127.0.0.1"),
            *(f"--socket={folder}/socket", f"--pid-file={folder}/pid", "--innodb-buffer-pool-size=32M"),
        ]
        running: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            with Path(folder, "log").open("ab") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=log))
            eventually(lambda: _answers(port), within_s=_WITHIN_S, what="MariaDB answers")

        def stop() -> None:
            pid = int(Path(folder, "pid").read_text())
            _do(["kill", "-9", str(pid)])
            running.pop().wait()

        def restart() -> None:
            stop()
            start()

        start()
        try:
            yield f"mysql://root@127.0.0.1:{port}", restart
        finally:
            stop()


def _answers(port: int) -> bool:
    with contextlib.suppress(Exception):
        return bool(databases._run(f"mysql://root@127.0.0.1:{port}", "SELECT 1"))
    return False


@contextlib.contextmanager
def _folder_of(user: str) -> Iterator[tuple[str, list[str]]]:
    """A folder of a server's user, and what runs commands as that user: servers refuse to be root."""
    import getpass

    is_root = getpass.getuser() == "root"
    as_user = ["runuser", "-u", user, "--"] if is_root else []
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        if is_root:
            shutil.chown(folder, user)
        yield folder, as_user


def _do(command: list[str]) -> None:
    done = subprocess.run(
        command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=120, check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}"
