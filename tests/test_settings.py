"""`settings.AEVENTS`, read live: defaults, changes seen at once, and what is wrong in it ignored."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from types import MappingProxyType
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.test import override_settings, utils

from aevents.settings import Limits, Settings, conf, is_recording, is_strict, under_test


@pytest.fixture
def outside_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a server: Django's test environment has not been set up."""
    monkeypatch.delattr(utils._TestState, "saved_data")


def test_what_is_not_set_has_its_default() -> None:
    with override_settings(AEVENTS={}):
        assert conf() == Settings()
    assert Settings() == Settings(
        SERVICE="",
        SERVICES={},
        SUBSCRIPTIONS={},
        UNSIGNED=None,
        STORE="default",
        OUTBOX=False,
        INBOX=False,
        RELAY=True,
        SCHEDULE=(1, 5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, *[43200] * 5),
        HISTORY_DAYS=0,
        STRICT=None,
        ENABLED=None,
        AUTODISCOVER=True,
        TRANSPORTS={},
        LIMITS=Limits(),
    )


def test_without_aevents_in_the_settings_all_is_default(settings: Any) -> None:
    del settings.AEVENTS
    assert conf() == Settings()


def test_what_is_set_is_taken() -> None:
    keys = {"OUTBOX": ["user-*"], "SCHEDULE": [0.5], "HISTORY_DAYS": 0.5}
    with override_settings(AEVENTS=keys):
        assert (conf().OUTBOX, conf().SCHEDULE, conf().HISTORY_DAYS) == (["user-*"], [0.5], 0.5)
    with override_settings(AEVENTS={"SERVICE": "shop", "STORE": None, "LIMITS": {"CALL_S": 1.5, "TRIES": 7}}):
        assert conf().SERVICE == "shop"
        assert conf().STORE is None
        assert (conf().LIMITS.CALL_S, conf().LIMITS.TRIES, conf().LIMITS.EXIT_S) == (1.5, 7, 5.0)


def test_any_mapping_will_do() -> None:
    frozen = MappingProxyType({"SERVICE": "shop", "LIMITS": MappingProxyType({"TRIES": 1})})
    with override_settings(AEVENTS=frozen):
        assert (conf().SERVICE, conf().LIMITS.TRIES) == ("shop", 1)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        7,
        ["SERVICE"],
        {"SERVICS": 1, 7: 8},
        {"LIMITS": None},
        {"LIMITS": 7},
        {"LIMITS": {"TRIES": "3"}},
        {"LIMITS": {"TRIES": 0, "CALL_S": -1, "WAITING": True, "EXIT_S": float("nan"), "X": 1}},
        {"LIMITS": {"CALL_S": float("inf")}},
        *({"SCHEDULE": value} for value in (None, 5, [], "1", [1, 0], [1, "2"], [float("nan")], {1: 2})),
        *({"HISTORY_DAYS": value} for value in (None, -1, "7", True, float("inf"), [7])),
        *({"OUTBOX": value} for value in (None, 0, "", {})),
        *({"STORE": value} for value in (7, ["default"], {"default": 1}, True)),
    ],
    ids=str,
)
def test_what_is_wrong_is_the_checks_affair_and_breaks_nothing(wrong: Any) -> None:
    with override_settings(AEVENTS=wrong):
        assert conf() == Settings()


@pytest.mark.parametrize("value", [7, "user-created", [7], ["user-created", None], {"user-created": True}])
def test_an_outbox_of_the_wrong_kind_is_on_for_all(value: Any) -> None:
    with override_settings(AEVENTS={"OUTBOX": value}):
        assert conf().OUTBOX is True


@pytest.mark.parametrize("value", [False, 0, [], {}])
def test_a_store_that_is_switched_off_in_the_wrong_way_is_none(value: Any) -> None:
    with override_settings(AEVENTS={"STORE": value}):
        assert conf().STORE is None


# Live


def test_the_same_settings_are_read_once() -> None:
    assert conf() is conf()


def test_override_settings_is_seen_at_once_and_its_end_too() -> None:
    before = conf()
    with override_settings(AEVENTS={"SERVICE": "one"}):
        assert conf().SERVICE == "one"
        with override_settings(AEVENTS={"SERVICE": "two"}, DEBUG=True):
            assert conf().SERVICE == "two"
        assert conf().SERVICE == "one"
    assert conf() == before


def test_the_fixture_of_pytest_django_is_seen_at_once(settings: Any) -> None:
    settings.AEVENTS = {"SERVICE": "one"}
    assert conf().SERVICE == "one"
    settings.AEVENTS = {"SERVICE": "two"}
    assert conf().SERVICE == "two"


def test_a_plain_assignment_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    conf()
    monkeypatch.setattr(django_settings, "AEVENTS", {"SERVICE": "patched"})
    assert conf().SERVICE == "patched"
    monkeypatch.undo()
    assert conf().SERVICE == "tests"


def test_settings_cannot_be_assigned_to() -> None:
    with pytest.raises(FrozenInstanceError):
        conf().SERVICE = "other"  # type: ignore[misc]  # that is the point
    with pytest.raises(FrozenInstanceError):
        conf().LIMITS.TRIES = 1  # type: ignore[misc]  # that is the point


# In tests, and elsewhere


@pytest.mark.parametrize(
    ("keys", "recording", "strict"),
    [
        ({}, True, True),
        ({"ENABLED": None, "STRICT": None}, True, True),
        ({"STRICT": False}, True, False),
        ({"ENABLED": True}, False, False),
        ({"ENABLED": True, "STRICT": True}, False, True),
        ({"ENABLED": False}, False, False),
    ],
)
def test_under_a_test_runner_events_are_recorded_unless_enabled(
    keys: dict[str, Any], recording: bool, strict: bool
) -> None:
    with override_settings(AEVENTS=keys):
        assert (under_test(), is_recording(), is_strict()) == (True, recording, strict)


def test_a_test_is_known_by_what_django_keeps_while_tests_run() -> None:
    # Django's own affair: where a version of it says otherwise, no test's events would be recorded
    assert hasattr(utils._TestState, "saved_data")
    assert under_test()


def test_a_django_that_keeps_it_elsewhere_breaks_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(utils, "_TestState")

    assert not under_test()


@pytest.mark.parametrize(
    ("keys", "strict"), [({}, False), ({"ENABLED": True}, False), ({"STRICT": True}, True)]
)
@pytest.mark.usefixtures("outside_of_tests")
def test_in_a_server_events_are_sent_and_wrong_calls_do_not_raise(keys: dict[str, Any], strict: bool) -> None:
    with override_settings(AEVENTS=keys):
        assert (under_test(), is_recording(), is_strict()) == (False, False, strict)
