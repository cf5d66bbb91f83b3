"""How the store stands: its tables in, what is owed to whom and what is wrong with it out. Reads only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from django.db.models import Count, Exists, Min, OuterRef, Q

from aevents import routes, subscriptions, tables
from aevents.rows import NowMs, now_ms
from aevents.settings import conf
from aevents.tables import DEAD, DONE, IN, OUT, OWED, SUSPECT

NAMES = {OUT: "out", IN: "in"}
_LINES_OF_ERRORS = 20


@dataclass(frozen=True, slots=True)
class Target:
    """How one service (out) or handler (in) stands. `owed` counts what is tried still, suspects too."""

    direction: str
    target: str
    owed: int = 0
    oldest_owed_s: float | None = None
    due: int = 0
    leased: int = 0
    suspects: int = 0
    dead: int = 0
    done: int = 0
    is_known: bool = True  # to the code and the settings of this process
    paused_for_s: float | None = None
    last_error: str = ""  # of one that is dead


@dataclass(frozen=True, slots=True)
class Status:
    """How the whole store stands."""

    service: str
    targets: tuple[Target, ...]

    def total(self, name: str) -> int:
        """Return the sum of one count over all targets."""
        return sum(getattr(target, name) for target in self.targets)

    @property
    def oldest_owed_s(self) -> float | None:
        """For how long the oldest that is owed is in the store."""
        return max((t.oldest_owed_s for t in self.targets if t.oldest_owed_s is not None), default=None)

    @property
    def unknown(self) -> list[Target]:
        """Those that are owed something and that this code does not know."""
        return [target for target in self.targets if not target.is_known]

    @property
    def paused(self) -> list[Target]:
        """Those that a person has paused."""
        return [target for target in self.targets if target.paused_for_s is not None]

    def problems(self, max_age_s: float) -> list[str]:
        """Say what a person has to look at; nothing where all is well."""
        found = []
        if dead := self.total("dead"):
            found.append(f"{dead} dead")
        if self.unknown:
            found.append(f"unknown targets: {', '.join(target.target for target in self.unknown)}")
        if (self.oldest_owed_s or 0) > max_age_s:
            found.append(f"the oldest is owed for {age(self.oldest_owed_s)}, over {age(max_age_s)}")
        return found

    def as_dict(self, max_age_s: float) -> dict[str, Any]:
        """Return all of it for JSON."""
        counts = ("owed", "due", "leased", "suspects", "dead", "done")
        problems = self.problems(max_age_s)
        return {
            "service": self.service,
            "is_well": not problems,
            "problems": problems,
            **{name: self.total(name) for name in counts},
            "oldest_owed_s": self.oldest_owed_s,
            "unknown": [_name(target) for target in self.unknown],
            "paused": [_name(target) for target in self.paused],
            "targets": [asdict(target) for target in self.targets],
        }


def read() -> Status:
    """Read how the store stands; raises what the database raises."""
    now = clock_ms()
    counts: dict[tuple[int, str], dict[int, dict[str, Any]]] = {}
    for row in _counts():
        counts.setdefault((row["direction"], row["target"]), {})[row["state"]] = row
    pauses = {(p.direction, p.target): max(0.0, (now - p.since_ms) / 1000) for p in tables.pauses().all()}
    stored_at = _stored_at([row["oldest"] for states in counts.values() for row in states.values()])
    errors = _errors([place for place, states in counts.items() if DEAD in states])
    targets = []
    for place in sorted({*counts, *pauses}):
        direction, target = place
        states = counts.get(place, {})
        owed = [states[state] for state in (OWED, SUSPECT) if state in states]
        since = [stored_at[row["oldest"]] for row in owed if row["oldest"] in stored_at]
        dead = states.get(DEAD, {}).get("count", 0)
        targets.append(
            Target(
                direction=NAMES[direction],
                target=target,
                owed=sum(row["count"] for row in owed),
                oldest_owed_s=max(0.0, (now - min(since)) / 1000) if since else None,
                due=sum(row["due"] for row in owed),
                leased=sum(row["leased"] for row in owed),
                suspects=states.get(SUSPECT, {}).get("count", 0),
                dead=dead,
                done=states.get(DONE, {}).get("count", 0),
                is_known=is_known(direction, target) or not (owed or dead),
                paused_for_s=pauses.get(place),
                last_error=errors.get(place, ""),
            )
        )
    return Status(conf().SERVICE, tuple(targets))


def is_known(direction: int, target: str) -> bool:
    """Tell whether this process has a service, or a handler, of that name."""
    if direction == OUT:
        return routes.destination_named(target) is not None
    return target in subscriptions.handler_names()


def owed() -> tuple[int, float | None]:
    """Return how many deliveries are owed, and for how many seconds the oldest is in the store."""
    rows = tables.deliveries().filter(state__in=(OWED, SUSPECT))
    found = rows.aggregate(count=Count("pk"), oldest=Min("event_id"))
    stored_at = _stored_at([found["oldest"]]) if found["count"] else {}
    ages = [max(0.0, (clock_ms() - at) / 1000) for at in stored_at.values()]
    return found["count"], ages[0] if ages else None


def claimable(due_by_ms: int) -> set[tuple[int, str]]:
    """Return the targets that are owed something a relay may claim, of what was due by that moment."""
    older = tables.deliveries().filter(
        order_key=OuterRef("order_key"), pk__lt=OuterRef("pk"), state__in=(OWED, SUSPECT, DEAD)
    )
    due = tables.deliveries().filter(Q(order_key="") | ~Exists(older), state__in=(OWED, SUSPECT))
    found = due.filter(due_ms__lte=due_by_ms).values_list("direction", "target").distinct()
    paused = set(tables.pauses().values_list("direction", "target"))
    return {place for place in found if place not in paused and is_known(*place)}


def clock_ms() -> int:
    """Return the database's clock."""
    with tables.connection().cursor() as cursor:
        cursor.execute(f"SELECT {now_ms(tables.connection()).sql}")
        return int(cursor.fetchone()[0])


def age(seconds: float | None) -> str:
    """Return a duration for a person."""
    if seconds is None:
        return "–"
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _counts() -> Any:
    is_due = Q(due_ms__lte=NowMs())
    return (
        tables.deliveries()
        .values("state", "direction", "target")
        .annotate(
            count=Count("pk"),
            due=Count("pk", filter=is_due),
            leased=Count("pk", filter=~is_due & ~Q(lease="")),
            oldest=Min("event_id"),
        )
        .order_by()
    )


def _stored_at(event_pks: list[int]) -> dict[int, int]:
    return dict(tables.events().filter(pk__in=event_pks).values_list("pk", "created_ms"))


def _errors(places: list[tuple[int, str]]) -> dict[tuple[int, str], str]:
    """Return one error of each of these targets: of the delivery that was stored last."""
    found = {}
    for direction, target in sorted(places)[:_LINES_OF_ERRORS]:
        rows = tables.deliveries().filter(direction=direction, target=target, state=DEAD)
        found[direction, target] = rows.order_by("-pk").values_list("error", flat=True).first() or ""
    return found


def _name(target: Target) -> dict[str, str]:
    return {"direction": target.direction, "target": target.target}
