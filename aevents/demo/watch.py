"""Facts in, in the order in which they happened; shown, counted and compared with the story."""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator

from aevents.demo.facts import Fact

_SCENE_S = 20.0
_LOOK_S = 0.2  # so that signals are seen soon on every system
# The services report through a pipe each: for so long facts wait to be put in order.
_ORDER_S = 0.03


class WentWrong(Exception):
    """What was seen is not what must happen. `service`: the one that ended, if one did."""

    def __init__(self, reason: str, service: str | None = None) -> None:
        super().__init__(reason)
        self.service = service


class Interrupted(Exception):
    """A signal said that it is enough. `number`: which one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Watch:
    """Follows what is reported, and knows what should have been."""

    def __init__(self, facts: queue.SimpleQueue[Fact], show: Callable[[Fact], None]) -> None:
        self._queue = facts
        self._show = show
        self._due: Counter[str] = Counter()
        self.facts: list[Fact] = []

    def until_seen(self, keys: Counter[str]) -> None:
        """Show facts until these are among them; raises `WentWrong` at any other, or if it takes long."""
        self._due += keys
        ends = time.monotonic() + _SCENE_S
        while self.missing:
            self.follow()
            if self.surplus or time.monotonic() > ends:
                raise WentWrong(self.difference())

    def follow(self) -> None:
        """Show what is reported within the next moment; raises `WentWrong` if a service ended.

        Raises `Interrupted` where a signal came, as `until_seen` and `finish` do.
        """
        for fact in self._gather(_LOOK_S):
            if fact.what == "ended":
                raise WentWrong(f"{fact.service} ended.", fact.service)
            self._take(fact)

    def finish(self) -> None:
        """Show what is left, the services being at their end."""
        for fact in self._gather(0):
            if fact.what != "ended":
                self._take(fact)
        if self.difference():
            raise WentWrong(self.difference())

    @property
    def missing(self) -> Counter[str]:
        """The keys that must still be seen."""
        return self._due - self._seen

    @property
    def surplus(self) -> Counter[str]:
        """The keys that were seen and should not have been."""
        return self._seen - self._due

    def difference(self) -> str:
        """Return what is missing and what is too much, a line for each; empty if all is well."""
        return "\n".join(
            [f"did not happen: {key}" for key in self.missing.elements()]
            + [f"should not have happened: {key}" for key in self.surplus.elements()]
        )

    @property
    def _seen(self) -> Counter[str]:
        return Counter(fact.key for fact in self.facts)

    def _take(self, fact: Fact) -> None:
        if fact.what == "interrupted":
            raise Interrupted(int(fact.who))
        self.facts.append(fact)
        self._show(fact)

    def _gather(self, timeout_s: float) -> list[Fact]:
        try:
            found = [self._queue.get(timeout=timeout_s or None, block=timeout_s > 0)]
        except queue.Empty:
            return []
        time.sleep(_ORDER_S)
        return sorted([*found, *self._rest()], key=lambda fact: fact.at)

    def _rest(self) -> Iterator[Fact]:
        while True:
            try:
                yield self._queue.get_nowait()
            except queue.Empty:
                return
