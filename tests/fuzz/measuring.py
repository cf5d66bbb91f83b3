"""What an input costs: messages in, the slowest and the largest of them out.

Time and memory are measured apart, as counting each allocation takes longer than the work itself.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aevents import routes, signature, wire
from aevents.errors import MalformedMessage
from aevents.event import Message
from tests.fuzz.packing import unpack
from tests.fuzz.targets import KEYS, received

GOAL_MS = 50
GOAL_RATIO = 2
_KIB = 1024
_LARGE_BYTES = 64 * _KIB
_TIMES = 3
_SHOWN = 72
_SMALLEST = Message({"content-type": wire.JSON}, b'{"event_type":"a","payload":1}')
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """What one input cost. `resident_bytes`: by how much the process grew, where the system tells."""

    data: bytes
    bytes: int
    took_ms: float
    allocated_bytes: int
    resident_bytes: int

    @property
    def ratio(self) -> float:
        return self.resident_bytes / self.bytes

    def __str__(self) -> str:
        more = "..." if len(self.data) > _SHOWN else ""
        allocated, resident = self.allocated_bytes // _KIB, self.resident_bytes // _KIB
        return (
            f"{self.took_ms:.1f} ms, {allocated} KiB allocated, {resident} KiB resident"
            f" ({self.ratio:.1f} times its size): {self.bytes} bytes, {self.data[:_SHOWN]!r}{more}"
        )


def report(inputs: Iterable[bytes]) -> str:
    """Measure each input as `costs` does, and tell of the dearest ones."""
    found = costs(inputs)
    small = [cost for cost in found if cost.bytes < _LARGE_BYTES]
    large = [cost for cost in found if cost.bytes >= _LARGE_BYTES]
    lines = [f"{len(found)} inputs measured, {len(large)} of them of 64 KiB and more"]
    for name, some in (("smaller", small), ("larger", large)):
        lines += [
            f"of the {name} ones over {GOAL_MS} ms: {sum(cost.took_ms > GOAL_MS for cost in some)}",
            *(f"  slowest: {cost}" for cost in _dearest(some, lambda cost: cost.took_ms)),
            *(f"  most allocated: {cost}" for cost in _dearest(some, lambda cost: cost.allocated_bytes)),
        ]
    lines += [
        f"of the larger ones over {GOAL_RATIO} times their size: {sum(c.ratio > GOAL_RATIO for c in large)}",
        *(f"  most resident for its size: {cost}" for cost in _dearest(large, lambda cost: cost.ratio)),
    ]
    return "\n".join(lines)


def costs(inputs: Iterable[bytes]) -> list[Cost]:
    """Measure the whole way in, a verifier before it, for each input, as they come from the fuzzers."""
    messages = {data: unpack(data, KEYS).message for data in inputs}
    sizes = {data: _size(message) for data, message in messages.items()}
    # First, while nothing is resident that was needed before. A smaller one takes what any event does.
    resident = {data: _resident_bytes(messages[data]) for data in messages if sizes[data] >= _LARGE_BYTES}
    found = []
    for data, message in messages.items():
        took_ms = 1000 * min(_took_s(message) for _ in range(_TIMES))
        found.append(Cost(data, sizes[data], took_ms, _allocated_bytes(message), resident.get(data, 0)))
    return found


def _size(message: Message) -> int:
    return max(1, len(message.body) + sum(map(len, message.headers.values())))


def _dearest(found: Sequence[Cost], by: Callable[[Cost], float]) -> list[Cost]:
    return sorted(found, key=by, reverse=True)[:3]


def _work(message: Message) -> None:
    with contextlib.suppress(MalformedMessage):
        signature.verify(message, routes.keys().verifying(wire.source_in(message.headers)))
    received(message)


def _took_s(message: Message) -> float:
    began = time.perf_counter()
    _work(message)
    return time.perf_counter() - began


def _allocated_bytes(message: Message) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        _work(message)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _resident_bytes(message: Message) -> int:
    """Measure it in a child: orjson reserves a hundred times what it writes to, and pages are what counts."""
    if not _STATUS.exists():
        return 0
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        gc.freeze()  # a collection writes to each object there is, and pages are copied that nobody needs
        _work(_SMALLEST)
        _CLEAR.write_text("5")  # the highest mark begins here
        before = _kib("VmRSS")
        _work(message)
        os.write(writable, str(_kib("VmHWM") - before).encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as answer:
        found = answer.read()
    os.waitpid(pid, 0)
    return int(found) * _KIB


def _kib(name: str) -> int:
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def watched(target: Callable[[bytes], None], note: Callable[[bytes, float], Any]) -> Callable[[bytes], None]:
    """Return `target`, which tells `note` of each input that took longer than all before."""
    longest_s = 0.0

    def timed(data: bytes) -> None:
        nonlocal longest_s
        began = time.perf_counter()
        target(data)
        took_s = time.perf_counter() - began
        if took_s > longest_s:
            longest_s = took_s
            note(data, took_s)

    return timed
