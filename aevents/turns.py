"""Calls sync handlers in this thread: turns in, what came of each noted on it.

One alone, in a transaction where it is to have one. Several in one transaction, each in a savepoint, so
that the commit is shared and a failure is alone. And one call for many events.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone, translation

from aevents import outage, scope, store
from aevents.commits import Pending
from aevents.event import Event
from aevents.settings import conf
from aevents.subscriptions import Subscription
from aevents.tables import Lease


@dataclass(slots=True, eq=False)
class Turn:
    """One event that its handler is called for, in a context of its own; `lease`: of the stored delivery.

    `result` is what the handler returned, `error` what it raised: no future carries every exception as it is.
    """

    event: Event
    subscription: Subscription
    lease: Lease | None
    context: Context
    result: Any = None
    error: BaseException | None = None


class _Undone(Exception):
    """The transaction is of no use any more, for none of those who share it."""


def is_atomic(subscription: Subscription) -> bool:
    """Tell whether the handler runs in a transaction of the `STORE` database."""
    if subscription.is_async or not subscription.atomic:
        return False
    alias = conf().STORE
    if alias is None:
        return False
    engine = connections.settings.get(alias, {}).get("ENGINE", "")
    return engine != "django.db.backends.dummy" if alias == DEFAULT_DB_ALIAS else True


def take(turn: Turn) -> None:
    """Call the handler for one event."""
    try:
        with _transaction(turn.subscription):
            if turn.lease is not None and is_atomic(turn.subscription):
                store.take([turn.lease])  # first: whoever lost it must not even begin
            turn.result = _call(turn)
    except BaseException as error:
        turn.result, turn.error = None, error


def share(turns: Iterator[Turn]) -> list[Turn]:
    """Call the handlers in one transaction of the `STORE` database; return the turns that were begun.

    Where the transaction breaks, it is undone whole, and each of them is taken again alone.
    """
    begun: list[Turn] = []
    try:
        with transaction.atomic(using=conf().STORE):
            for turn in turns:
                begun.append(turn)
                _take_in_a_savepoint(turn)
            # Whose lease was lost has run for nothing: its effect goes with all of this.
            store.take([turn.lease for turn in begun if turn.lease is not None and turn.error is None])
    except BaseException:
        for turn in begun:
            turn.result = turn.error = None
            turn.context.run(scope.enter, turn.event, turn.subscription.name)  # it emits the same ids again
            take(turn)
    return begun


def take_together(turns: Sequence[Turn]) -> None:
    """Call the handler once with all payloads; where that fails, with each half, down to who fails alone."""
    try:
        with _transaction(turns[0].subscription):
            if is_atomic(turns[0].subscription):
                store.take([turn.lease for turn in turns if turn.lease is not None])
            result = _call(*turns)
        for turn in turns:
            turn.result = result
    except BaseException as error:
        if len(turns) == 1:
            turns[0].error = error
            return
        half = len(turns) // 2
        take_together(turns[:half])
        take_together(turns[half:])


def _take_in_a_savepoint(turn: Turn) -> None:
    connection = connections[conf().STORE or DEFAULT_DB_ALIAS]
    hooks = len(connection.run_on_commit)
    try:
        with transaction.atomic(using=connection.alias):
            turn.result = _call(turn)
            _keep_the_savepoint(connection)
    except BaseException as error:
        # A deadlock, for one, has ended MariaDB's whole transaction.
        if connection.needs_rollback or outage.passes(error):
            raise _Undone from error
        turn.error = error
        return
    # What the handler wants done after the commit is still its own: its context, and its failure.
    own: list[Any] = connection.run_on_commit  # savepoints, hook, whether it is robust
    for place, (savepoints, hook, is_robust) in enumerate(own[hooks:], hooks):
        if isinstance(hook, Pending):
            continue
        own[place] = (savepoints, functools.partial(_call_hook, turn, hook, is_robust), is_robust)


def _keep_the_savepoint(connection: BaseDatabaseWrapper) -> None:
    """Let the commit release it with all the others: one round trip less for each of them.

    `atomic` leaves a block without a savepoint where there stands None. Nobody goes back to it any more.
    """
    savepoints: list[str | None] = connection.savepoint_ids  # type: ignore[assignment]  # None is one, too
    if savepoints and not connection.needs_rollback:
        savepoints[-1] = None


def _call_hook(turn: Turn, hook: Callable[[], object], is_robust: bool) -> None:
    if turn.error is not None:  # as Django has it: after one that raised, none of the rest
        return
    try:
        turn.context.run(hook)
    except BaseException as error:  # all has been committed: nobody may be handled again for that
        if is_robust and isinstance(error, Exception):
            raise  # which Django logs
        turn.error = error


def _call(first: Turn, *others: Turn) -> Any:
    if not first.subscription.batch:
        return first.context.run(_in_time, first.subscription, first.event.payload)
    events = [first.event, *[turn.event for turn in others]]
    context = first.context
    if others:
        context = context.copy()
        context.run(scope.enter_many, events, first.subscription.name)
    result = context.run(_in_time, first.subscription, [event.payload for event in events])
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError("it returned a coroutine: batch=True is for sync handlers, so leave it out here")
    return result


def _in_time(subscription: Subscription, argument: Any) -> Any:
    """Call a sync handler. No thread can be stopped: what comes too late is undone and counts as failed."""
    began = time.monotonic()
    result = subscription.handler(argument)
    if subscription.timeout_s is not None and time.monotonic() - began > subscription.timeout_s:
        raise TimeoutError(f"the handler took longer than its timeout_s={subscription.timeout_s:g}")
    return result


def _transaction(subscription: Subscription) -> contextlib.AbstractContextManager[object]:
    return transaction.atomic(using=conf().STORE) if is_atomic(subscription) else contextlib.nullcontext()


def forget_language() -> None:
    """Go back to the settings' language and time zone, whatever a request or the last handler had chosen."""
    translation.deactivate()
    timezone.deactivate()
