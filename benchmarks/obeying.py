"""What each process of the benchmarks can say of itself, and how it is asked: see `rig.Side`."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import stages
from benchmarks.sampler import Sampler

_sampler: Sampler | None = None
_began = (0.0, 0.0, 0)


def begin(side: str, is_sampled: bool) -> None:
    """Begin to count what this process uses, and where asked for to look at its stacks."""
    global _sampler, _began
    _sampler = Sampler(stages.OF[side]) if is_sampled else None
    if _sampler is not None:
        _sampler.begin()
    _began = _used()


def end_counting() -> dict[str, Any]:
    """Return the CPU seconds since then, and how they spread."""
    used_s, in_kernel_s, waits = (now - then for now, then in zip(_used(), _began, strict=True))
    if _sampler is None:
        return {"used_s": used_s, "in_kernel_s": in_kernel_s, "waits": waits}
    _sampler.end()
    used_s -= _sampler.own_s
    return {"used_s": used_s, "by_stage": _sampler.by_stage, "by_function": _sampler.by_function}


def rss_mib() -> float:
    """Return how much memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def obey(functions: Mapping[str, Callable[..., Any]], answers: Any) -> None:
    """Call by name what each line of stdin asks for, until there is none."""
    own = {"begin": begin, "end_counting": end_counting, "rss_mib": rss_mib}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        function = own.get(name) or functions[name]
        print(json.dumps([function(*arguments)]), file=answers, flush=True)


def _used() -> tuple[float, float, int]:
    """CPU seconds, those of them in the kernel, and how often a thread has given its core away."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_stime, usage.ru_nvcsw
