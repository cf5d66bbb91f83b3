"""No verb: how the store stands, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aevents import status
from aevents.commands.base import Terminal, Verb
from aevents.commands.status import headline
from aevents.status import Status, Target, age

_FEW = 5
_LATE_S = 60.0
_NEXT = "`manage.py aevents"


class Overview(Verb):
    name = ""
    help = "Say how the store stands, and what to do next."

    def run(self, terminal: Terminal, options: Mapping[str, Any]) -> int:
        found = status.read()
        terminal.say(headline(found))
        advice = list(_advice(found))
        for line in advice or ["There is nothing to do."]:
            terminal.say(line)
        terminal.say(f"{_NEXT} status` tells more, {_NEXT} --help` names all that can be done.")
        return 0


def _advice(found: Status) -> Iterator[str]:
    yield from _some([target for target in found.targets if target.dead], _of_dead)
    yield from _some(found.unknown, _of_unknown)
    yield from _some(found.paused, _of_paused)
    late = [t for t in found.targets if t.due and t.is_known and t.paused_for_s is None and not t.leased]
    if any((target.oldest_owed_s or 0) > _LATE_S for target in late):
        yield f"What is due is not tried: start {_NEXT} worker`, or look whether it runs."


def _some(targets: list[Target], of: Any) -> Iterator[str]:
    for target in targets[:_FEW]:
        yield of(target)
    if len(targets) > _FEW:
        yield f"And {len(targets) - _FEW} more: {_NEXT} status`."


def _of_dead(target: Target) -> str:
    why = f" The last one died of: {target.last_error}." if target.last_error else ""
    return (
        f"{target.dead:,} dead: {target.target}.{why} When that is mended,"
        f" {_NEXT} replay --target {target.target}`;"
        f" or give them up with {_NEXT} discard --target {target.target}`."
    )


def _of_unknown(target: Target) -> str:
    if target.direction == "out":
        mend = "name it in AEVENTS['SERVICES']"
    else:
        mend = "deploy the code that has this handler, or subscribe one with that name="
    return (
        f"{target.target} is unknown here, {target.owed + target.dead:,} wait for it: {mend};"
        f" or give them up with {_NEXT} discard --owed --target {target.target}`."
    )


def _of_paused(target: Target) -> str:
    return (
        f"{target.target} is paused for {age(target.paused_for_s)}, {target.owed:,} wait:"
        f" {_NEXT} resume {target.target}` ends it."
    )
