"""What a receiver answers, whatever carried the message, and what the emitter makes of a good answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

ANSWER_BYTES = 64 * 1024  # read of one answer, head and body, as they come over the wire


@dataclass(slots=True)
class Answer:
    """An HTTP status with its JSON body and lower-case headers."""

    status: int
    content: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The content as JSON."""
        return orjson.dumps(self.content)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The destination owns the event now. `verdict`: what it said of it (`handled`, `unhandled`, ...)."""

    verdict: str = ""
