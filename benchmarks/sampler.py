"""Where a process spends its CPU time: stacks sampled by a thread in, CPU seconds by stage out.

Every few milliseconds each thread's CPU clock is read, twice in short succession, and what it used between
the two looks is put down to the stage that the innermost frame on its stack belongs to. In short: else what a
thread has used before it fell asleep would be put down to its sleep. A frame that belongs to none counts as
its caller's, and so does C code: it has no frame.

Only who holds the interpreter's lock can look, and who works gives it away at its next wait, if nobody asks
before. So the thread asks at once: else nearly every look would find a socket being written. That makes
the other threads ask sooner, too; what a run costs is therefore measured without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

_EVERY_S = 0.004
_BETWEEN_S = 0.000_02
_ASKS_AFTER_S = 0.000_01
_PR_SET_TIMERSLACK = 29
ELSE = "all else"

#: The modules of each stage, or single functions of them as `module:function`.
Stages = Mapping[str, Sequence[str]]


class Sampler:
    """Samples the threads of this process, but for those named `unseen`."""

    def __init__(self, stages: Stages) -> None:
        self._stage_of = {place: stage for stage, places in stages.items() for place in places}
        self._known: dict[tuple[str, str], str | None] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unseen", daemon=True)
        self._asks_after_s = sys.getswitchinterval()
        #: CPU seconds by stage, and by module and function.
        self.by_stage: Counter[str] = Counter()
        self.by_function: Counter[str] = Counter()
        #: What the looking itself took.
        self.own_s = 0.0

    def begin(self) -> None:
        """Begin to look."""
        sys.setswitchinterval(_ASKS_AFTER_S)
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._is_over.set()
        self._thread.join()
        sys.setswitchinterval(self._asks_after_s)

    def _run(self) -> None:
        _wake_on_time()
        while not self._is_over.is_set():
            # At random, lest it keeps in step with what it looks at.
            time.sleep(random.uniform(0.5, 1.5) * _EVERY_S)
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            before = {
                ident: _used_s(ident) for ident in sys._current_frames() if names.get(ident) != "unseen"
            }
            time.sleep(_BETWEEN_S)
            frames = sys._current_frames()
            for ident, used_s in before.items():
                if ident in frames and (more_s := _used_s(ident) - used_s) > 0:
                    self._put_down(frames[ident], more_s)
            frames.clear()
        self.own_s = time.thread_time()

    def _put_down(self, frame: FrameType, used_s: float) -> None:
        for each in _outwards(frame):
            module, function = each.f_globals.get("__name__", ""), each.f_code.co_name
            stage = self._stage(module, function)
            if stage is not None:
                self.by_stage[stage] += used_s
                self.by_function[f"{stage}: {module}:{function}"] += used_s
                return
        self.by_stage[ELSE] += used_s
        self.by_function[f"{ELSE}: {frame.f_globals.get('__name__')}:{frame.f_code.co_name}"] += used_s

    def _stage(self, module: str, function: str) -> str | None:
        key = module, function
        if key not in self._known:
            self._known[key] = self._find(module, function)
        return self._known[key]

    def _find(self, module: str, function: str) -> str | None:
        place = f"{module}:{function}"
        while place:
            if place in self._stage_of:
                return self._stage_of[place]
            place = place.rpartition(":" if ":" in place else ".")[0]
        return None


def _outwards(frame: FrameType) -> Iterator[FrameType]:
    following: FrameType | None = frame
    while following is not None:
        yield following
        following = following.f_back


def _used_s(ident: int) -> float:
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(ident))
    except OSError:  # it has ended
        return 0.0


def _wake_on_time() -> None:
    """Let Linux wake this thread when it is due, not in 50 µs, and not when another one goes to sleep."""
    with contextlib.suppress(AttributeError, OSError):  # not Linux, not root: looks are less evenly spread
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
