"""Who wants to know: `subscribe_to` calls in, the handlers of an event type out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from aevents.errors import InvalidSubscription
from aevents.event import is_event_type, pattern
from aevents.settings import conf

Handler = Callable[[Any], Awaitable[Any] | Any]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True, slots=True)
class Subscription:
    """One handler of one event type or pattern, under a name that stays the same over deploys."""

    event_type: str
    handler: Handler
    name: str
    atomic: bool
    is_async: bool
    timeout_s: float | None = None
    batch: bool = False  # it takes a list of payloads


_by_type: dict[str, dict[str, Subscription]] = {}
_patterns: tuple[str, ...] = ()


@overload
def subscribe_to(
    event_type: str,
    event_handler: H,
    *,
    name: str | None = None,
    atomic: bool = True,
    timeout_s: float | None = None,
    batch: bool = False,
) -> H: ...
@overload
def subscribe_to(
    event_type: str,
    event_handler: None = None,
    *,
    name: str | None = None,
    atomic: bool = True,
    timeout_s: float | None = None,
    batch: bool = False,
) -> Callable[[H], H]: ...
def subscribe_to(
    event_type: str,
    event_handler: Handler | None = None,
    *,
    name: str | None = None,
    atomic: bool = True,
    timeout_s: float | None = None,
    batch: bool = False,
) -> Handler | Callable[[H], H]:
    """Call `event_handler(payload)` for every event of this type that reaches this service.

    `event_type` may be a pattern, in which `*` stands for any run of characters, where what is named in
    `LISTEN` has wildcards (`manage.py aevents transports`). `current_event().type` tells which one came.

    Call it in `AppConfig.ready()`, or use it as a decorator in an app's `events.py`. The handler is
    sync or async; several may share an event, each is called on its own and with a payload of its
    own; the same one twice counts once. `name` is its stable name (default `module.qualname`): what
    is stored for the handler is found by it, so keep it when you rename the function.
    A sync handler runs in a transaction on the `STORE` database, so that one that raises leaves
    nothing behind there; `atomic=False` is without. `timeout_s`: an async handler that takes longer
    is cancelled; a sync one cannot be stopped, but what it did is undone when it ends. Both count as
    failed. `batch=True`: it is called with a list of the payloads of what waits for it, often one and at
    the most 256 (`BATCH`), for `bulk_create`; where that fails each half is tried again, down to whom it
    is that fails. Raises `InvalidSubscription`.
    """
    if event_handler is None:

        def decorate(handler: H) -> H:
            _add(event_type, handler, name, atomic, timeout_s, batch)
            return handler

        return decorate
    _add(event_type, event_handler, name, atomic, timeout_s, batch)
    return event_handler


def handlers_of(event_type: str) -> tuple[Subscription, ...]:
    """Return the subscriptions of a type in the order they were made; those of patterns come last."""
    return tuple(_named(event_type).values())


def handler_named(event_type: str, name: str) -> Subscription | None:
    """Return the subscription of that name to that type, or None where this code has none."""
    return _named(event_type).get(name)


def patterns() -> tuple[str, ...]:
    """Return the patterns that are subscribed to."""
    return tuple(text for text in _by_type if "*" in text)


def _named(event_type: str) -> Mapping[str, Subscription]:
    found = _by_type.get(event_type, {})
    for text in _patterns:  # seldom any
        if pattern(text).fullmatch(event_type):
            found = {**_by_type[text], **found}
    return found


def handler_names() -> frozenset[str]:
    """Return the names of all handlers."""
    return frozenset(name for known in list(_by_type.values()) for name in known)


def subscribed_types() -> Mapping[str, Mapping[str, Subscription]]:
    """Return every subscription, by type and name."""
    return _by_type


def unsubscribe_all() -> Mapping[str, Mapping[str, Subscription]]:
    """Forget every subscription, for tests; returns them for `restore`."""
    before = dict(_by_type)
    restore({})
    return before


def restore(subscriptions: Mapping[str, Mapping[str, Subscription]]) -> None:
    """Put back what `unsubscribe_all` returned, in place of what is there."""
    global _patterns
    _by_type.clear()
    _by_type.update({key: dict(value) for key, value in subscriptions.items()})
    _patterns = patterns()


def _add(
    event_type: str,
    handler: Handler,
    name: str | None,
    atomic: bool,
    timeout_s: float | None,
    batch: bool,
) -> None:
    if not is_event_type(event_type):
        raise InvalidSubscription(
            f"the event type {event_type!r:.80} must be a printable string of 1 to 200 characters"
        )
    if "*" in event_type and not conf().LISTEN:
        raise InvalidSubscription(
            f"{event_type!r}: HTTP has no wildcards; subscribe to each event type, or LISTEN to a broker"
            " that has them"
        )
    if not callable(handler):
        raise InvalidSubscription(f"the handler of {event_type!r} is not callable: {handler!r:.80}")
    name = name or _default_name(event_type, handler)
    known = _by_type.get(event_type, {})
    if name in known and not _is_again(known[name].handler, handler):
        raise InvalidSubscription(
            f"two handlers of {event_type!r} are named {name!r}: give one of them another name="
        )
    if not is_event_type(name):
        raise InvalidSubscription(
            f"the name of a handler of {event_type!r} must be a printable string of 1 to 200 characters,"
            f" not {name!a:.80}: pass a shorter name="
        )
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise InvalidSubscription(f"timeout_s of {name!r} must be a number of seconds above 0")
    is_async = _is_async(handler)
    if batch and is_async:
        raise InvalidSubscription(
            f"{name!r} is async: batch=True is for sync handlers, so make it a plain function"
        )
    subscription = Subscription(event_type, handler, name, atomic, is_async, timeout_s, batch)
    # A new dict each time: another thread may be reading the old one.
    _by_type[event_type] = {**known, name: subscription}
    if "*" in event_type:
        global _patterns
        _patterns = patterns()


def _default_name(event_type: str, handler: Handler) -> str:
    qualname = getattr(handler, "__qualname__", None)
    if qualname is None or "<lambda>" in qualname or "<locals>" in qualname:
        raise InvalidSubscription(
            f"the handler {handler!r:.120} of {event_type!r} has no name that lasts: pass name="
        )
    return f"{handler.__module__}.{qualname}"


def _is_again(old: Handler, new: Handler) -> bool:
    """Tell whether `new` is the handler `old`, or what a reload of its module made of it."""
    if old == new:
        return True
    if _origin(old) is None or _origin(old) != _origin(new):
        return False
    # A reload makes the class anew; methods of two instances of one class are two handlers.
    owner = getattr(new, "__self__", None)
    return owner is None or isinstance(owner, type) or type(owner) is not type(getattr(old, "__self__", None))


def _origin(handler: Handler) -> tuple[str, ...] | None:
    qualname = getattr(handler, "__qualname__", None)
    if qualname is None or "<locals>" in qualname or "<lambda>" in qualname:
        return None
    owner = getattr(handler, "__self__", None)
    owner_class = owner if isinstance(owner, type) else type(owner)
    return handler.__module__, qualname, owner_class.__module__, owner_class.__qualname__


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - an object whose __call__ is async
    )
