"""What a service reports and the runner reads: one Fact, one line of JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that happened.

    `what`: emitted, delivered, retried, parked, failed (to be delivered), handled, raised (a handler did),
    unhandled, duplicate; started, killed, ended, answered, interrupted. `event` is a type, or a path;
    `who` the service it went to, the handler, or the answer.
    """

    at: float
    service: str
    what: str
    event: str = ""
    who: str = ""
    ms: float | None = None
    detail: str = ""

    @property
    def key(self) -> str:
        """What must be the same each time the demo runs."""
        return " ".join(f"{self.service} {self.what} {self.event} {self.who}".split())


def to_line(fact: Fact) -> bytes:
    """Return the fact as one line."""
    return json.dumps(dataclasses.asdict(fact)).encode() + b"\n"


def from_line(line: bytes) -> Fact | None:
    """Return the fact that the line holds; None where it is something else."""
    try:
        return Fact(**json.loads(line))
    except (ValueError, TypeError):
        return None
