"""The threads of handlers and look-ups: as many as allowed, kept, and no hindrance to an end."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.utils.asyncio import async_unsafe

from aevents import threads
from aevents.threads import DaemonPool, HandlerThreads


@pytest.fixture
def pool() -> Iterator[DaemonPool]:
    pool = DaemonPool(2, "pool")
    yield pool
    pool.shutdown()
    assert [t for t in threading.enumerate() if t.name.startswith("pool_")] == []


def test_what_is_returned_and_what_is_raised_comes_back(pool: DaemonPool) -> None:
    assert pool.submit(pow, 2, 5, mod=7).result(10) == 4
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(10)
    with pytest.raises(SystemExit):
        pool.submit(exit_).result(10)
    assert pool.submit(str, 1).result(10) == "1"


def exit_() -> None:
    raise SystemExit


def test_no_more_threads_than_allowed_are_started_and_no_more_than_needed(pool: DaemonPool) -> None:
    for _ in range(5):
        pool.submit(int).result(10)
        # A thread is free only a moment after its result is there
        assert pool._idle.acquire(timeout=10)
        pool._idle.release()
    assert len(pool._threads) == 1

    released = threading.Event()
    held = [pool.submit(released.wait) for _ in range(6)]
    assert len(pool._threads) == 2
    assert pool.wait(0) == 6
    released.set()
    assert [future.result(10) for future in held] == [True] * 6
    assert pool.wait(10) == 0


def test_its_threads_keep_no_process_alive(pool: DaemonPool) -> None:
    assert pool.submit(lambda: threading.current_thread().daemon).result(10)


def test_what_was_cancelled_before_it_began_is_not_run(pool: DaemonPool) -> None:
    released = threading.Event()
    held = [pool.submit(released.wait) for _ in range(2)]
    ran: list[int] = []
    waiting = pool.submit(ran.append, 1)

    assert waiting.cancel()
    released.set()

    assert pool.submit(len, ran).result(10) == 0
    assert all(future.result(10) for future in held)


def test_after_a_shutdown_it_takes_nothing_more_but_ends_what_it_has() -> None:
    pool = DaemonPool(1, "pool")
    futures = [pool.submit(pow, n, 2) for n in range(10)]

    pool.shutdown()

    assert [future.result(0) for future in futures] == [n * n for n in range(10)]
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(int)


def test_after_a_shutdown_that_does_not_wait_no_thread_is_left_but_one_at_work() -> None:
    for _ in range(50):
        pool = DaemonPool(2, "pool")
        [asked] = wait([pool.submit(threading.current_thread)]).done
        pool.shutdown(wait=False)

        assert not asked.result().is_alive()

    # And one at work is not waited for
    pool = DaemonPool(1, "pool")
    released = threading.Event()
    future = pool.submit(released.wait)
    pool.shutdown(wait=False)

    assert not future.done()
    released.set()
    assert future.result(10)


async def test_where_no_thread_can_be_started_the_work_is_done_here_as_if_no_loop_ran(
    pool: DaemonPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an interpreter that starts no more threads, as Python 3.12 when atexit callbacks run
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    query = async_unsafe(threading.current_thread)  # Django lets the ORM run only where no loop does
    with pytest.raises(SynchronousOnlyOperation):
        query()

    # When work is given to the pool
    thread = await asyncio.get_running_loop().run_in_executor(pool, query)

    # Then it has been done by this very thread
    assert thread is threading.current_thread()
    assert pool.wait(0) == 0


def test_connections_are_renewed_between_the_work_of_two_handlers_and_not_in_its_midst(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a handler that ends, and another on another loop that begins in that very moment
    handlers, done = HandlerThreads(), []
    other_has_begun = threading.Event()

    def work(name: str) -> None:
        done.append(name)
        if name == "other":
            other_has_begun.set()

    async def handle(name: str) -> None:
        context = contextvars.copy_context()
        thread = handlers.lend_for_orm(context)
        call = sync_to_async(work)(name)
        await asyncio.get_running_loop().create_task(call, context=context)
        renewed = handlers.take_back(thread)
        if renewed is not None:
            await asyncio.wrap_future(renewed)

    other = threading.Thread(target=lambda: asyncio.run(handle("other")))
    submit = DaemonPool.submit

    def submit_late(pool: DaemonPool, *work: Any) -> Any:
        if done == ["renewed", "one"] and other.ident is None:
            other.start()
            other_has_begun.wait(0.5)  # it comes as far as it is let
        return submit(pool, *work)

    monkeypatch.setattr(DaemonPool, "submit", submit_late)
    monkeypatch.setattr(threads, "close_old_connections", lambda: done.append("renewed"))
    # When
    asyncio.run(handle("one"))
    other.join(10)
    handlers.close()
    # Then each worked between two renewals
    assert done[:6] == ["renewed", "one", "renewed", "renewed", "other", "renewed"]
