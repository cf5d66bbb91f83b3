"""A daemon thread with a running event loop: started when first needed, one for each process.

The courier has one for its deliveries, the dispatcher one for handlers where no server's loop lives.
A fork has no threads: the child forgets the loop and starts its own when it needs one.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import importlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_logger = logging.getLogger("aevents")

_all: weakref.WeakSet[LoopThread]
_exit_began: float | None = None


def why_no_threads() -> str | None:
    """Say why this process cannot run a second event loop in a thread, or None where it can."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return "gevent has patched the threads of this process"
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        return "eventlet has patched the threads of this process"
    if _is_uwsgi_without_threads():
        return "uWSGI runs without threads: set enable-threads = true"
    return None


def _is_uwsgi_without_threads() -> bool:
    try:
        uwsgi = importlib.import_module("uwsgi")  # there only inside of uWSGI's own processes
    except ImportError:
        return False
    options = {_text(key): _text(value).lower() for key, value in uwsgi.opt.items()}
    # `threads = n` implies enable-threads
    return "threads" not in options and options.get("enable-threads", "false") in ("false", "0", "no")


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def is_in_a_loop() -> bool:
    """Tell whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def start_task(work: Coroutine[Any, Any, T], context: contextvars.Context | None = None) -> asyncio.Task[T]:
    """Make a task of `work` on the running loop; where Python can (3.12), it runs to its first wait here.

    Most handlers never wait: their tasks are done at once, and no loop has to come round for them.
    """
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, context=context, eager_start=True)
    return loop.create_task(work, context=context)


def call_where_multiprocessing_ends(work: Callable[[], None]) -> None:
    """Have `work` called at the end of a child of `multiprocessing`, which runs no `atexit` callbacks."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, work, exitpriority=0)


def keep_for_ever(thing: object) -> None:
    """Let nothing free `thing`, nor what it holds, not even the end of the interpreter.

    The child of a fork shares its parent's sockets and epoll set. Finalizers that close them here
    would take the parent's connections out of that set, and the parent would wait in vain.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def new_quickest_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop of uvloop's where that is installed (`aevents[uvloop]`), else one of asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class LoopThread:
    """An event loop in a daemon thread. `start` may be called by any thread, any number of times."""

    def __init__(
        self, name: str, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    ) -> None:
        self.name = name
        self._new_loop = new_loop
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self.on_fork: Callable[[], None] | None = None
        _all.add(self)

    @property
    def is_running(self) -> bool:
        """Whether the loop runs in this very process."""
        return self._loop is not None and self._pid == os.getpid()

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the loop's own."""
        return self._thread is threading.current_thread()

    def start(self) -> asyncio.AbstractEventLoop:
        """Return the running loop; raises `RuntimeError` where threads cannot be had."""
        loop = self._loop  # once: another thread may stop it between two looks
        if loop is not None and self._pid == os.getpid():
            return loop
        with self._lock:
            if self._loop is not None and self._pid != os.getpid():
                self.forget()  # a fork in C that ran no hooks (uWSGI)
            return self._loop or self._begin()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `coroutine` on the loop, from any other thread."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.start())
        except BaseException:
            coroutine.close()
            raise

    def stop(self, timeout_s: float) -> None:
        """Cancel what runs, close the loop and wait for the thread, at most `timeout_s`."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or self._pid != os.getpid():
            return
        try:
            loop.call_soon_threadsafe(loop.stop)
        except RuntimeError:  # closed already
            return
        thread.join(timeout_s)

    def forget(self) -> None:
        """Drop what the parent process had, closing nothing of it. Called in the child of a fork."""
        keep_for_ever((self._loop, self._thread))
        self._loop = self._thread = None
        if self.on_fork is not None:
            self.on_fork()

    def _begin(self) -> asyncio.AbstractEventLoop:
        reason = why_no_threads()
        if reason is not None:
            raise RuntimeError(reason)
        loop = self._new_loop()
        ready = threading.Event()
        thread = threading.Thread(target=self._run, args=(loop, ready), name=self.name, daemon=True)
        try:
            thread.start()
        except BaseException:
            loop.close()
            raise
        ready.wait()
        self._pid, self._thread, self._loop = os.getpid(), thread, loop
        return loop

    def _run(self, loop: asyncio.AbstractEventLoop, ready: threading.Event) -> None:
        asyncio.set_event_loop(loop)
        loop.call_soon(ready.set)
        try:
            while True:
                try:
                    loop.run_forever()
                    return
                except (SystemExit, KeyboardInterrupt):  # out of a user's task or signal receiver
                    _logger.exception("Code on the loop of %r asked the process to end", self.name)
        finally:
            _finish(loop)


def exit_lasts_s() -> float:
    """Return for how long the process ends already: since this was asked first."""
    global _exit_began
    _exit_began = _exit_began or time.monotonic()
    return time.monotonic() - _exit_began


def run_here(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` on a loop of its own in this thread, where none runs; as little as can be is needed.

    `asyncio.run` starts a thread to end the loop's executor, which a process that ends may not do.
    """
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        _finish(loop)


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _after_fork() -> None:
    for thread in list(_all):
        thread._lock = threading.Lock()
        if thread._loop is not None:
            thread.forget()


_all = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
