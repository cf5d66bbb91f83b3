"""The breaker against a plain model of what it promises, on a clock that the test turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from aevents import breaker
from aevents.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Jitter:
    """In place of `random`: the model must know what was drawn."""

    drawn = 1.0

    def uniform(self, low: float, high: float) -> float:
        assert low <= self.drawn <= high
        return self.drawn


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def jitter(monkeypatch: pytest.MonkeyPatch) -> Jitter:
    jitter = Jitter()
    monkeypatch.setattr(breaker, "random", jitter)
    return jitter


def opened(clock: Clock) -> Breaker:
    one = Breaker(clock)
    for _ in range(5):
        assert one.admit()
        one.failed(clock.now)
    assert one.is_open
    return one


# The rules, one by one


def test_the_fifth_failure_in_a_row_opens(clock: Clock) -> None:
    one = Breaker(clock)

    assert [one.failed(clock.now) for _ in range(5)] == [False, False, False, False, True]
    assert (one.is_open, one.failures) == (True, 5)
    assert not one.admit()
    assert not one.admit_retry()


def test_an_answer_starts_the_count_anew(clock: Clock) -> None:
    one = Breaker(clock)
    for _ in range(4):
        one.failed(clock.now)

    assert not one.succeeded()
    assert [one.failed(clock.now) for _ in range(4)] == [False] * 4
    assert not one.is_open


def test_two_failures_over_four_seconds_open(clock: Clock) -> None:
    one, began = Breaker(clock), clock.now
    clock.now += 2
    assert not one.failed(began)
    clock.now += 2
    assert one.failed(clock.now - 2)


def test_one_failure_opens_nothing_however_long_it_took(clock: Clock) -> None:
    one = Breaker(clock)

    assert not one.failed(clock.now - 60)


def test_half_of_twenty_tries_that_fail_open(clock: Clock) -> None:
    one = Breaker(clock)

    opened_at = [one.failed(clock.now) if n % 2 else one.succeeded() for n in range(20)]

    assert opened_at == [False] * 19 + [True]


def test_failures_of_an_older_window_do_not_count(clock: Clock) -> None:
    one = Breaker(clock)
    for n in range(19):
        one.failed(clock.now) if n % 2 else one.succeeded()
    clock.now += 10

    assert not one.failed(clock.now)


def test_after_the_pause_one_probe_may_go_and_its_answer_closes(clock: Clock) -> None:
    one = opened(clock)
    assert one.pause_s == 1.0
    clock.now += 1.0

    assert [one.admit() for _ in range(3)] == [True, False, False]
    assert not one.admit_retry()
    assert one.succeeded()
    assert (one.is_open, one.failures, one.pause_s) == (False, 0, 0.0)
    assert one.admit()


def test_every_probe_that_fails_doubles_the_pause_up_to_half_a_minute(clock: Clock) -> None:
    one, pauses = opened(clock), []

    for _ in range(7):
        pauses.append(one.pause_s)
        clock.now += one.pause_s
        assert one.admit()
        assert not one.failed(clock.now)

    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    clock.now += one.pause_s
    one.admit()
    one.succeeded()
    for _ in range(5):
        one.failed(clock.now)
    assert one.pause_s == 1


def test_the_pause_is_jittered_by_a_quarter(clock: Clock, jitter: Jitter) -> None:
    jitter.drawn = 0.75
    assert opened(clock).pause_s == 0.75
    jitter.drawn = 1.25
    assert opened(clock).pause_s == 1.25


def test_a_straggler_from_before_neither_fails_the_probe_nor_lets_a_second_one_go(clock: Clock) -> None:
    one, before = opened(clock), clock.now
    clock.now += 1.0
    assert one.admit()

    one.failed(before)
    one.gave_up(before)

    assert (one.admit(), one.pause_s) == (False, 0.0)


def test_a_probe_that_was_given_up_leaves_room_for_the_next(clock: Clock) -> None:
    one = opened(clock)
    clock.now += 1.0
    assert one.admit()

    one.gave_up(clock.now)

    assert one.admit()


def test_retries_are_a_reserve_of_ten_and_then_a_fifth_of_the_traffic(clock: Clock) -> None:
    one = Breaker(clock)

    assert [one.admit_retry() for _ in range(12)] == [True] * 10 + [False] * 2
    granted = 0
    for _ in range(1000):
        one.admit()
        one.succeeded()
        granted += one.admit_retry()
    assert 190 <= granted <= 200


# All of them together


@dataclass
class Try:
    began: float
    is_probe: bool


class BreakerAgainstModel(RuleBasedStateMachine):
    """The model keeps every outcome and reads the rules off that list."""

    tries = Bundle("tries")

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.jitter = pytest.MonkeyPatch(), Jitter()
        self.patch.setattr(breaker, "random", self.jitter)
        self.clock = Clock()
        self.breaker = Breaker(self.clock)
        self.failures: list[float] = []  # in a row; when each began
        self.window: list[bool] = []
        self.window_ends = 0.0
        self.open_until: float | None = None
        self.pause_s = 0.0
        self.probe: Try | None = None
        self.first_tries = self.retries = 0

    def teardown(self) -> None:
        self.patch.undo()

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 5.0, 11.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(target=tries)
    def somebody_wants_to_try(self) -> Any:
        is_open = self.open_until is not None
        may = not is_open or (self.probe is None and self.clock.now >= (self.open_until or 0.0))

        assert self.breaker.admit() is may

        if not may:
            return multiple()
        self.first_tries += not is_open
        one = Try(self.clock.now, is_probe=is_open)
        if is_open:
            self.probe = one
        # A straggler may have begun in the very moment of the probe: no clock tells them apart.
        self.clock.now += 0.001
        return one

    @rule(target=tries)
    def somebody_wants_to_try_again(self) -> Any:
        granted = self.breaker.admit_retry()

        assert not (granted and self.open_until is not None)
        if not granted:
            return multiple()
        self.retries += 1
        one = Try(self.clock.now, is_probe=False)
        self.clock.now += 0.001
        return one

    @rule(one=consumes(tries))
    def it_is_answered(self, one: Try) -> None:
        was_open = self.open_until is not None

        assert self.breaker.succeeded() is was_open

        self.failures, self.open_until, self.pause_s, self.probe = [], None, 0.0, None
        if was_open:
            self.window = []
        self._count(True)

    @rule(one=consumes(tries), jitter=st.sampled_from([0.75, 1.0, 1.25]))
    def it_fails(self, one: Try, jitter: float) -> None:
        self.jitter.drawn = jitter
        self.failures.append(one.began)
        self._count(False)
        opens = self.open_until is None and (
            len(self.failures) >= 5
            or (len(self.failures) >= 2 and self.clock.now - self.failures[0] >= 4)
            or (len(self.window) >= 20 and self.window.count(False) * 2 >= len(self.window))
        )

        assert self.breaker.failed(one.began) is opens

        if opens or (one is self.probe and self.open_until is not None):
            self.pause_s = min(30.0, self.pause_s * 2 or 1.0)
            self.open_until = self.clock.now + self.pause_s * jitter
            self.probe = None

    @rule(one=consumes(tries))
    def it_is_given_up(self, one: Try) -> None:
        self.breaker.gave_up(one.began)

        if one is self.probe:
            self.probe = None

    @invariant()
    def both_say_the_same(self) -> None:
        assert self.breaker.is_open is (self.open_until is not None)
        assert self.breaker.failures == len(self.failures)
        left_s = max(0.0, (self.open_until or 0.0) - self.clock.now)
        assert self.breaker.pause_s == pytest.approx(left_s)

    @invariant()
    def retries_stay_within_the_reserve_and_a_fifth_of_the_traffic(self) -> None:
        assert self.retries <= 10 + self.first_tries / 5 + 1e-6

    def _count(self, is_good: bool) -> None:
        if self.clock.now >= self.window_ends:
            self.window, self.window_ends = [], self.clock.now + 10
        self.window.append(is_good)


TestTheBreakerAgainstAPlainModel = BreakerAgainstModel.TestCase
TestTheBreakerAgainstAPlainModel.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, database=None
)
