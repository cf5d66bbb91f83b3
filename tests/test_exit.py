"""The end of a process: what was emitted last leaves within the bound, or is said to be lost.

Each scene of `tests.process_project.ending` is a script of its own, in Python's development mode and
with warnings as errors: what is left open or pending at the end stands in its stderr.
"""

from __future__ import annotations

from collections import Counter
from signal import SIGTERM

import pytest

from tests.peers import Peer, answers, hangs
from tests.process_project.running import Done, run

ENDS_WITHIN_S = 15.0  # far more than EXIT_S in these tests, far less than for ever
TOLD_AT_EXIT = ["told-at-exit", "told-handed-over-at-exit"]


def play(scene: str, peer: Peer, **limits: float) -> Done:
    return run("tests.process_project.ending", scene, url=peer.url, **limits)


ARRIVES = {
    "many": ([], ["told-many"] * 40),
    "before_the_courier": (["first delivered", "at-exit delivered"], ["told-first", *TOLD_AT_EXIT]),
    "before_the_first_emit": (["first delivered", "at-exit delivered"], ["told-first", *TOLD_AT_EXIT]),
    "after_the_first_emit": (["first delivered", "at-exit delivered"], ["told-first", *TOLD_AT_EXIT]),
    "nowhere_else": (["at-exit delivered"], TOLD_AT_EXIT),
    "in_a_thread": (
        ["first delivered", "by-a-thread delivered"],
        ["told-first", "told-by-a-thread", "told-handed-over-by-a-thread"],
    ),
}


@pytest.mark.parametrize("scene", ARRIVES)
def test_what_is_emitted_last_arrives_though_the_service_is_known_by_name(scene: str) -> None:
    printed, told = ARRIVES[scene]
    with Peer() as peer:
        done = play(scene, peer, EXIT_S=20)

        assert (done.errors, done.returncode) == ([], 0)
        assert done.printed == printed
        assert Counter(r.event_type for r in peer.requests) == Counter(told)
        assert len({r.id for r in peer.requests}) == len(told)


def test_what_was_emitted_leaves_before_a_process_that_fails_and_its_status_stays() -> None:
    with Peer() as peer:
        done = play("sys_exit", peer, EXIT_S=20)

        assert (done.errors, done.returncode) == ([], 3)
        assert [r.event_type for r in peer.requests] == ["told-last"]


def test_a_signal_that_is_handled_is_an_ordinary_end_and_one_that_is_not_drains_nothing() -> None:
    for scene, status, told in [
        ("by_a_signal_that_is_handled", 0, ["told-last"]),
        ("by_a_signal", -SIGTERM, []),
    ]:
        # Given a peer that wants the event in a second: one that is killed sends nothing then
        with Peer(answers(503, retry_after="1"), answers()) as peer:
            done = play(scene, peer, EXIT_S=20)

            assert (done.errors, done.returncode) == ([], status)
            assert [r.event_type for r in peer.requests][1:] == told


def test_at_the_end_no_thread_and_no_socket_is_left() -> None:
    with Peer() as peer:
        done = play("and_look_what_is_left", peer, EXIT_S=20)

        assert (done.errors, done.returncode) == ([], 0)
        (while_it_runs, afterwards) = done.printed[1:]
        assert "'aevents'" in while_it_runs
        assert while_it_runs.endswith(" True")
        assert afterwards == "[] False"


def test_what_was_handed_over_in_a_loop_leaves_after_the_loop_has_ended() -> None:
    with Peer() as peer:
        done = play("after_asyncio_run", peer, EXIT_S=20)

        assert "Use `await aemit(...)` there" in done.errors[0]  # the warning, its stack, and nothing else
        assert all(line.startswith((" ", "Stack")) for line in done.errors[1:])
        assert [r.event_type for r in peer.requests] == ["told-awaited", "told-handed-over"]


@pytest.mark.parametrize("scene", ["own_events", "own_events_at_exit"])
def test_events_to_oneself_are_handled_and_what_their_handlers_emit_leaves_too(scene: str) -> None:
    with Peer() as peer:
        done = play(scene, peer, EXIT_S=20)

        assert done.errors == []
        assert sorted(r.event_type for r in peer.requests) == [
            "told-awaited-by-the-async-handler",
            "told-by-the-async-handler",
            "told-by-the-sync-handler",
        ]


def test_what_a_service_that_hangs_is_owed_is_given_up_at_the_bound_each_by_its_line() -> None:
    with Peer(hangs) as peer:
        done = play("many", peer, EXIT_S=0.3)

        assert done.took_s < ENDS_WITHIN_S
        *lost, last = done.errors
        assert last == "The process ended with 40 deliveries undone"
        assert len(lost) == 40
        assert all(line.startswith("Lost told-many ") for line in lost)
        assert all(line.endswith(": the process ended") for line in lost)


def test_the_bound_holds_for_callbacks_that_run_after_the_courier_has_ended() -> None:
    with Peer(hangs) as peer:
        done = play("before_the_courier", peer, CALL_S=0.2, EXIT_S=0.2)

        assert done.took_s < ENDS_WITHIN_S
        assert done.printed == ["first queued", "at-exit failed"]
        assert [line.split()[1] for line in done.errors if line.startswith("Lost")] == [
            "told-first",
            "told-at-exit",
            "told-handed-over-at-exit",
        ]
        assert done.errors.count("The process ended with 1 deliveries undone") == 3


def test_a_daemon_thread_that_emits_to_the_very_end_harms_nothing() -> None:
    with Peer() as peer:
        done = play("in_a_daemon_thread", peer, EXIT_S=0.3)

    # Then each of its events has arrived or is told lost: nothing else is in the log, whenever it was cut
    assert done.returncode == 0
    last = "The process ended with"
    assert [line for line in done.errors if not line.startswith(("Lost told-by-a-daemon ", last))] == []


def test_handlers_that_hang_hold_the_process_no_longer_than_the_bound() -> None:
    with Peer() as peer:
        done = play("own_handlers_that_hang", peer, EXIT_S=0.3)

    assert done.took_s < ENDS_WITHIN_S
    assert "The process ended with 1 handlers undone" in done.errors
    assert "The process ended with 2 deliveries undone" in done.errors
    assert {line.split()[1] for line in done.errors if line.startswith("Lost")} == {"own-sync", "own-async"}
    assert "Task was destroyed" not in "".join(done.errors)


def test_a_name_that_is_looked_up_for_ever_holds_the_process_no_longer_than_the_bound() -> None:
    with Peer() as peer:
        done = play("a_name_that_is_looked_up_for_ever", peer, EXIT_S=0.3)

    assert done.took_s < ENDS_WITHIN_S
    assert done.errors[-1] == "The process ended with 1 deliveries undone"
    assert [line.split()[1] for line in done.errors[:-1]] == ["told-last"]
