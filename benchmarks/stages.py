"""The stages of both sides: which modules each has, which floor, and the tables of what they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# `aevents.settings` and the like are read everywhere: what stands in no list counts as its caller's.
_EMITTING: Mapping[str, tuple[str, ...]] = {
    "client": (
        "__main__:emitter",
        "__main__:<lambda>",
        "aevents.emitter",
        "aevents.emission",
        "aevents.scope",
    ),
    "the emitters' loop": ("__main__",),
    "compose": ("aevents.composer", "aevents.event", "aevents.payload", "aevents.wire:encode"),
    "routes and parcels": ("aevents.routes", "aevents.shipment"),
    "crossing": ("aevents.courier", "aevents.arrivals", "aevents.returns"),
    "the courier's loop": ("aevents.loops",),
    "lane": (
        *("aevents.lane", "aevents.convoy", "aevents.backlog", "aevents.endings", "aevents.outcomes"),
        *("aevents.pace", "aevents.breaker", "aevents.retry"),
    ),
    "wire": ("aevents.batch", "aevents.cloudevents", "aevents.wire", "aevents.signature"),
    "HTTP": ("aevents.transports", "aiohttp", "yarl", "multidict"),
}
_RECEIVING: Mapping[str, tuple[str, ...]] = {
    "server's loop": ("uvicorn.server", "__main__"),
    "server": ("uvicorn", "benchmarks"),
    "parse": ("aevents.asgi", "aevents.answer"),
    "verify": ("aevents.signature", "aevents.keyring", "aevents.receiver:_signer"),
    "decode": ("aevents.batch", "aevents.cloudevents", "aevents.wire", "aevents.payload"),
    "dispatch": (
        *("aevents.receiver", "aevents.dispatcher", "aevents.inbox", "aevents.intake", "aevents.calls"),
        *("aevents.queues", "aevents.turns", "aevents.threads", "aevents.recent", "aevents.subscriptions"),
        *("aevents.replies", "aevents.loops", "aevents.scope", "aevents.event"),
    ),
    # Django's and psycopg's frames are in no list: each statement counts where it is called for.
    "database: arrivals": (
        *("aevents.store:arrive", "aevents.store:_remember", "aevents.store:add", "aevents.store:__init__"),
        *("aevents.store:_event_row", "aevents.store:_delivery_row", "aevents.rows", "aevents.columns"),
    ),
    "database: savepoints": ("aevents.turns:_take_in_a_savepoint",),
    "database: transactions": (
        "aevents.turns:share",
        "aevents.turns:take",
        "aevents.threads:close_worn_connections",
    ),
    "database: ends": ("aevents.store", "aevents.tables"),
    "database: its thread": (
        *("aevents.keeper", "aevents.jobs", "aevents.holdings", "aevents.outcomes", "aevents.claims"),
        *("aevents.relay", "aevents.outage", "aevents.models"),
    ),
}
OF = {"emitter": _EMITTING, "receiver": _RECEIVING}

# What the floor of each stage is, and in words.
_FLOORS = {
    "client": ("wake", "a waiting task's future done by its own loop"),
    "compose": ("compose", "an id, the time, `orjson.dumps` of the payload"),
    "routes and parcels": ("pack", "a look into a dict, one object"),
    "crossing": ("cross", "a deque, one wake for all"),
    "wire": ("write+sign", "attributes by `orjson.dumps`, joined, one HMAC"),
    "HTTP": ("send", "the request into a socket and out of it"),
    "server's loop": ("serve", "the request out of a socket, and httptools' parser"),
    "verify": ("sign", "one HMAC of the body"),
    "decode": ("read", "`orjson.loads` of the body"),
    "dispatch": ("handle", "`orjson.loads` of the payload, the handler awaited"),
    "database: arrivals": ("insert", "one INSERT and one DELETE for all, both of them"),
    "database: savepoints": ("savepoint", "set and released in one round trip an event"),
}


def table(side: str, plain: dict[str, Any], stored: dict[str, Any] | None, rest: str) -> str:
    """Return the Markdown table of one side."""
    measured = [plain] if stored is None else [plain, stored]
    names = ["without a store", "with an inbox"][: len(measured)]
    heads = [f"{name}, µs" for name in names]
    lines = [
        f"The {side}: "
        + "; ".join(
            f"{name} {found['rate']:,.0f} events/s, {found['together']:.0f} together"
            for name, found in zip(names, measured, strict=True)
        ),
        "",
        f"| Stage | {' | '.join(heads)} | Floor, µs | which is |",
        f"| --- | {'---: | ' * len(heads)}---: | --- |",
    ]
    for stage in (*OF[side], rest):
        if not any(found[side].get(stage, 0.0) >= 0.05 for found in measured):
            continue
        figures = [f"{found[side].get(stage, 0.0):.1f}" for found in measured]
        floor, words = _floor(stage, measured)
        lines.append(f"| {stage} | {' | '.join(figures)} | {floor} | {words} |")
    figures = [f"{found[side]['all']:.1f}" for found in measured]
    lines.append(f"| **all** | {' | '.join(figures)} | | |")
    figures = [f"{found[side]['kernel']:.1f}" for found in measured]
    lines.append(f"| of it in the kernel | {' | '.join(figures)} | | |")
    figures = [f"{found[side]['waits']:.1f}" for found in measured]
    lines.append(f"| waits of a thread, for each request | {' | '.join(figures)} | | |")
    if side == "receiver" and stored is not None:
        lines.append(f"| PostgreSQL's processes | | {stored['PostgreSQL']:.1f} | | |")
    return "\n".join(lines) + "\n"


def _floor(stage: str, measured: list[dict[str, Any]]) -> tuple[str, str]:
    names, words = _FLOORS.get(stage, ("", ""))
    # The database's floor is only known where there is one; the others are those of the first run.
    for found in measured:
        known = [found["floors"].get(name) for name in names.split("+") if name]
        if known and all(each is not None for each in known):
            return f"{sum(known):.2f}", words
    return "", words
