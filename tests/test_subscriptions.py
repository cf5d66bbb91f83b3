"""`subscribe_to`: who may subscribe, under which name, and what counts as the same handler."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import aevents
from aevents import subscribe_to
from aevents.errors import AeventsError, InvalidSubscription
from aevents.subscriptions import Subscription, handlers_of, subscribed_types
from aevents.testing import adeliver, deliver

HERE = "tests.test_subscriptions"
ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_ran(settings: Any) -> None:
    settings.AEVENTS = {**settings.AEVENTS, "STORE": None}  # no test here needs a database
    ran.clear()


def handle(payload: Any) -> None:
    ran.append("handle")


def handle_too(payload: Any) -> None:
    ran.append("handle_too")


async def ahandle(payload: Any) -> None:
    ran.append("ahandle")


class Handlers:
    def __init__(self, label: str = "a") -> None:
        self.label = label

    def method(self, payload: Any) -> None:
        ran.append(f"method of {self.label}")

    async def amethod(self, payload: Any) -> None:
        ran.append(f"amethod of {self.label}")

    @classmethod
    def of_class(cls, payload: Any) -> None:
        ran.append(f"of_class of {cls.__name__}")

    @staticmethod
    async def static(payload: Any) -> None:
        ran.append("static")


class MoreHandlers(Handlers):
    pass


class Callable_:
    def __call__(self, payload: Any) -> None:
        ran.append("call")


class AsyncCallable:
    async def __call__(self, payload: Any) -> None:
        ran.append("acall")


def names(event_type: str = "user-created") -> list[str]:
    return [subscription.name for subscription in handlers_of(event_type)]


# The two ways


def test_a_call_subscribes_and_returns_the_handler() -> None:
    assert subscribe_to("user-created", handle) is handle
    assert handlers_of("user-created") == (
        Subscription("user-created", handle, f"{HERE}.handle", atomic=True, is_async=False),
    )


def test_a_decorator_subscribes_and_leaves_the_function_as_it_is() -> None:
    assert subscribe_to("user-created")(ahandle) is ahandle
    assert subscribe_to("user-created", name="other", atomic=False)(handle) is handle
    assert handlers_of("user-created") == (
        Subscription("user-created", ahandle, f"{HERE}.ahandle", atomic=True, is_async=True),
        Subscription("user-created", handle, "other", atomic=False, is_async=False),
    )


def test_decorators_may_be_stacked() -> None:
    subscribe_to("user-created")(subscribe_to("user-renamed")(handle))

    assert names("user-created") == names("user-renamed") == [f"{HERE}.handle"]


def test_several_handlers_are_kept_in_the_order_they_came() -> None:
    for handler in (handle_too, ahandle, handle):
        subscribe_to("user-created", handler)

    assert names() == [f"{HERE}.handle_too", f"{HERE}.ahandle", f"{HERE}.handle"]
    assert names("user-deleted") == []
    assert set(subscribed_types()) == {"user-created"}


def test_both_arguments_may_be_given_by_name() -> None:
    subscribe_to(event_type="user-created", event_handler=handle)

    assert names() == [f"{HERE}.handle"]


# The same handler twice


def test_the_same_handler_twice_counts_once() -> None:
    handlers = Handlers()
    for _ in range(2):
        subscribe_to("user-created", handle)
        subscribe_to("user-created")(ahandle)
        subscribe_to("user-created", handlers.method)  # a new bound method at each access
        subscribe_to("user-created", Handlers.of_class)
        subscribe_to("user-created", Handlers.static)
    deliver("user-created", {})

    assert sorted(ran) == ["ahandle", "handle", "method of a", "of_class of Handlers", "static"]


def test_the_same_handler_under_two_names_is_two() -> None:
    subscribe_to("user-created", handle, name="one")
    subscribe_to("user-created", handle, name="two")
    deliver("user-created", {})

    assert ran == ["handle", "handle"]


def test_the_last_options_of_a_handler_stay() -> None:
    subscribe_to("user-created", handle)
    subscribe_to("user-created", handle, atomic=False)

    assert [subscription.atomic for subscription in handlers_of("user-created")] == [False]


def test_two_handlers_under_one_name_are_refused() -> None:
    subscribe_to("user-created", handle, name="mine")
    with pytest.raises(InvalidSubscription, match=r"two handlers of 'user-created' are named 'mine'.*name="):
        subscribe_to("user-created", handle_too, name="mine")

    assert [subscription.handler for subscription in handlers_of("user-created")] == [handle]
    subscribe_to("user-renamed", handle_too, name="mine")  # names are each event type's own


def test_methods_of_two_instances_are_two_handlers_and_need_names() -> None:
    one, two = Handlers("one"), Handlers("two")
    subscribe_to("user-created", one.method)
    with pytest.raises(InvalidSubscription, match="name="):
        subscribe_to("user-created", two.method)
    subscribe_to("user-created", two.method, name="two")
    deliver("user-created", {})

    assert ran == ["method of one", "method of two"]


def test_methods_inherited_by_two_classes_are_two_handlers_and_need_names() -> None:
    subscribe_to("user-created", Handlers.of_class)
    with pytest.raises(InvalidSubscription, match="name="):
        subscribe_to("user-created", MoreHandlers.of_class)
    subscribe_to("user-renamed", Handlers().method)
    with pytest.raises(InvalidSubscription, match="name="):
        subscribe_to("user-renamed", MoreHandlers().method)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of handlers that subscribes them when it is imported."""
    (tmp_path / "reloaded_events.py").write_text(
        textwrap.dedent("""
        from aevents import subscribe_to

        ran = []

        @subscribe_to("user-created")
        def function(payload):
            ran.append("function")

        class Handlers:
            def method(self, payload):
                ran.append("method")

            @classmethod
            def of_class(cls, payload):
                ran.append("of_class")

        subscribe_to("user-created", Handlers().method)
        subscribe_to("user-created", Handlers.of_class)
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("reloaded_events")
    del sys.modules["reloaded_events"]


def test_a_reloaded_module_s_handlers_take_the_place_of_the_old_ones(module: ModuleType) -> None:
    before, old = names(), module.ran
    reloaded = importlib.reload(module)
    deliver("user-created", {})

    assert names() == before
    assert old == []
    assert reloaded.ran == ["function", "method", "of_class"]


# Names that last


@pytest.mark.parametrize(
    "handler",
    [
        lambda payload: None,
        functools.partial(handle),
        Callable_(),
        AsyncCallable(),
        (lambda: lambda payload: None)(),
    ],
    ids=["lambda", "partial", "object", "async object", "lambda of a lambda"],
)
def test_a_handler_without_a_name_that_lasts_needs_one(handler: Any) -> None:
    with pytest.raises(InvalidSubscription, match="has no name that lasts: pass name="):
        subscribe_to("user-created", handler)
    with pytest.raises(InvalidSubscription, match="pass name="):
        subscribe_to("user-created")(handler)
    assert names() == []

    subscribe_to("user-created", handler, name="mine")
    assert names() == ["mine"]


def test_a_function_inside_a_function_needs_a_name() -> None:
    def local(payload: Any) -> None: ...

    with pytest.raises(InvalidSubscription, match="pass name="):
        subscribe_to("user-created", local)
    with pytest.raises(InvalidSubscription, match="pass name="):
        subscribe_to("user-created", LocalHandlers().method)


def _local_class() -> type[Handlers]:
    class Local(Handlers):
        def method(self, payload: Any) -> None: ...

    return Local


LocalHandlers = _local_class()


# What is called, and how


@pytest.mark.parametrize(
    ("handler", "said", "is_async"),
    [
        (handle, "handle", False),
        (ahandle, "ahandle", True),
        (functools.partial(handle), "handle", False),
        (functools.partial(ahandle), "ahandle", True),
        (functools.partial(functools.partial(ahandle)), "ahandle", True),
        (Callable_(), "call", False),
        (AsyncCallable(), "acall", True),
        (Handlers().method, "method of a", False),
        (Handlers().amethod, "amethod of a", True),
        (functools.partial(Handlers().amethod), "amethod of a", True),
        (Handlers.of_class, "of_class of Handlers", False),
        (Handlers.static, "static", True),
    ],
)
async def test_whatever_can_be_called_is_called_as_what_it_is(
    handler: Any, said: str, is_async: bool
) -> None:
    subscribe_to("user-created", handler, name="mine")
    assert [subscription.is_async for subscription in handlers_of("user-created")] == [is_async]

    await adeliver("user-created", {})

    assert ran == [said]


@pytest.mark.parametrize("wrong", ["handle", 7, object(), {"handler": handle}])
def test_what_cannot_be_called_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidSubscription, match="is not callable"):
        subscribe_to("user-created", wrong)


@pytest.mark.parametrize("wrong", ["", "x" * 201, "two\nlines", "\x1b[31m", 7, None, b"user-created", handle])
def test_an_event_type_that_cannot_be_one_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidSubscription, match="must be a printable string of 1 to 200 characters"):
        subscribe_to(wrong, handle)
    with pytest.raises(InvalidSubscription):
        subscribe_to(wrong)(handle)
    assert not subscribed_types()


@pytest.mark.parametrize("wrong", ["*", "user-*", "*-created"])
def test_a_wildcard_is_refused_as_http_has_none(wrong: str) -> None:
    with pytest.raises(InvalidSubscription, match="subscribe to each event type"):
        subscribe_to(wrong, handle)


@pytest.mark.parametrize("event_type", ["u", "x" * 200, "größe ✓", "user created/v2", "user_created", "7"])
def test_any_other_printable_text_is_an_event_type(event_type: str) -> None:
    subscribe_to(event_type, handle)
    deliver(event_type, {})

    assert ran == ["handle"]


def test_a_refusal_is_a_value_error_of_aevents() -> None:
    assert issubclass(InvalidSubscription, ValueError)
    assert issubclass(InvalidSubscription, AeventsError)


def test_subscribing_while_events_are_handled_is_safe() -> None:
    async def subscribe_more(payload: Any) -> None:
        for n in range(100):
            subscribe_to("user-created", handle, name=f"more-{n}")

    subscribe_to("user-created", subscribe_more, name="more")
    deliver("user-created", {})
    assert ran == []
    deliver("user-created", {})
    assert ran == ["handle"] * 100


# Finding the handlers, and doing without settings


def run_python(code: str, cwd: Path, **environ: str) -> str:
    root = Path(aevents.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=cwd,
        env={"PYTHONPATH": f"{root}{os.pathsep}{cwd}", "PATH": "", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("apps", "keys", "found"),
    [
        ("['aevents', 'shop']", "{}", ["shop.apps.from_ready", "shop.events.decorated"]),
        ("['shop', 'aevents']", "{'AUTODISCOVER': True}", ["shop.apps.from_ready", "shop.events.decorated"]),
        ("['aevents', 'shop']", "{'AUTODISCOVER': False}", ["shop.apps.from_ready"]),
    ],
)
def test_events_py_of_every_app_is_found_unless_switched_off(
    tmp_path: Path, apps: str, keys: str, found: list[str]
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "events.py").write_text(
        textwrap.dedent("""
        from aevents import subscribe_to
        from shop.models import Order  # models may be used: the registry is ready

        @subscribe_to("user-created")
        def decorated(payload):
            Order.objects.create(user_id=payload["user_id"])
        """)
    )
    (tmp_path / "shop" / "models.py").write_text(
        "from django.db import models\nclass Order(models.Model):\n    user_id = models.IntegerField()\n"
    )
    (tmp_path / "shop" / "apps.py").write_text(
        textwrap.dedent("""
        from django.apps import AppConfig
        from aevents import subscribe_to

        def from_ready(payload): ...

        class ShopConfig(AppConfig):
            name = "shop"
            default_auto_field = "django.db.models.BigAutoField"

            def ready(self):
                subscribe_to("user-created", from_ready)
        """)
    )
    out = run_python(
        f"""
        import django
        from django.conf import settings
        settings.configure(INSTALLED_APPS={apps}, AEVENTS={keys})
        django.setup()
        from aevents.subscriptions import handlers_of
        print(*sorted(s.name for s in handlers_of("user-created")))
        """,
        tmp_path,
    )
    assert out.split() == found


def test_importing_aevents_needs_no_settings_and_touches_no_app(tmp_path: Path) -> None:
    out = run_python(
        """
        import sys, threading
        import aevents
        from aevents import emit, aemit, subscribe_to, current_event, suppressed, flush
        from django.apps import apps
        from django.conf import settings

        @subscribe_to("user-created")
        async def handle(payload): ...

        assert not settings.configured
        assert not apps.app_configs and not apps.models_ready and not apps.all_models
        unwanted = ("rest_framework", "adrf", "aevents.views", "aevents.apps", "aevents.testing",
                    "aevents.transports.http", "aiohttp", "pytest", "django.test")
        print([name for name in unwanted if name in sys.modules], threading.active_count())
        """,
        tmp_path,
    )
    assert out.strip() == "[] 1"
