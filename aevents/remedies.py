"""What a person does to rows in the admin: a query in, the verbs of `upkeep` called, a message out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin import helpers
from django.db.models import BooleanField, Count, ExpressionWrapper, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from aevents import readable, upkeep
from aevents.rows import NowMs
from aevents.tables import DEAD, DONE

if TYPE_CHECKING:
    from aevents.models import Delivery, Pause, StoredEvent

MOST = 20_000  # rows in one request: as many take a few seconds
MOST_EVENTS = 1_000
LISTED = 10  # on the page that asks
_TRIED = "being tried at this moment"
_OWED = "still owed (Retry is for those)"
_OVER = "dead or done (Replay is for those)"
_IS_TRIED = ~Q(lease="") & Q(due_ms__gt=NowMs())
_logger = logging.getLogger("aevents")


@dataclass(frozen=True, slots=True)
class Kind:
    """How a row stands, as far as it matters here."""

    state: int
    is_tried: bool
    is_due: bool
    is_erased: bool


@dataclass(frozen=True, slots=True)
class Remedy:
    """A verb, what is said when it is done, and why it leaves a row of some kind alone, if it does."""

    verb: Callable[[list[int]], int]
    done: tuple[str, str]
    why_not: Callable[[Kind], str | None]


def _no_retry(kind: Kind) -> str | None:
    if kind.is_tried:
        return _TRIED
    if kind.state in (DEAD, DONE):
        return _OVER
    return "due already" if kind.is_due else None


def _no_replay(kind: Kind) -> str | None:
    if kind.is_tried:
        return _TRIED
    if kind.state not in (DEAD, DONE):
        return _OWED
    return "without a payload, which was erased" if kind.is_erased else None


def _no_discard(kind: Kind) -> str | None:
    if kind.is_tried:
        return _TRIED
    return "done (they go by themselves, after HISTORY_DAYS)" if kind.state == DONE else None


RETRY = Remedy(upkeep.retry_now, ("is due now", "are due now"), _no_retry)
REPLAY = Remedy(upkeep.replay, ("is owed again", "are owed again"), _no_replay)
DISCARD = Remedy(upkeep.discard, ("was discarded", "were discarded"), _no_discard)


def kinds(rows: QuerySet[Delivery]) -> Counter[Kind]:
    """Count the rows of each kind, in one statement."""
    found = (
        rows.order_by()
        .values_list(
            "state",
            _is(_IS_TRIED),
            _is(Q(due_ms__lte=NowMs())),
            _is(Q(event__payload=None)),
        )
        .annotate(count=Count("pk"))
    )
    counts: Counter[Kind] = Counter()
    for state, is_tried, is_due, is_erased, count in found:
        counts[Kind(state, bool(is_tried), bool(is_due), bool(is_erased))] += count
    return counts


def apply(model_admin: Any, request: HttpRequest, rows: QuerySet[Delivery], remedy: Remedy) -> None:
    """Do it to all of the rows, some at a time; say to how many it was done, and what was left and why."""
    found = kinds(rows)
    if is_too_many(model_admin, request, found.total(), MOST):
        return
    left = _left(found, remedy)
    fits = found.total() > left.total()
    changed = sum(count for _, count in upkeep.in_steps(rows, remedy.verb)) if fits else 0
    # What somebody else did meanwhile: it was tried, or done, or discarded on another page.
    if meanwhile := max(0, found.total() - changed - left.total()):
        left["changed meanwhile"] += meanwhile
    text = f"{many(changed)} {remedy.done[changed != 1]}."
    if left:
        text += f" Left alone: {_listed(left)}."
    model_admin.message_user(request, text, messages.SUCCESS if changed else messages.WARNING)
    _log(request, f"{many(changed)} {remedy.done[changed != 1]}")


def discard(model_admin: Any, request: HttpRequest, rows: QuerySet[Delivery]) -> HttpResponse | None:
    """Ask first; then remove them for good."""
    if _is_confirmed(request):
        apply(model_admin, request, _asked_for(request, rows), DISCARD)
        return None
    found = kinds(rows)
    if is_too_many(model_admin, request, found.total(), MOST):
        return None
    left = _left(found, DISCARD)
    context = {
        "action": "discard",
        "title": "Discard deliveries?",
        "question": f"Remove {many(found.total() - left.total())} for good? The targets will never get these"
        " events, and nothing is left to replay.",
        "left": _listed(left),
        "is_any": found.total() > left.total(),
        "button": f"Discard {many(found.total() - left.total())}",
        "listed": [
            readable.visible(
                f"{row.event.type} {row.event.event_id}, {row.get_direction_display()}: {row.target}"
                f" ({row.get_state_display()})"
            )
            for row in rows.exclude(_IS_TRIED).exclude(state=DONE)[:LISTED]
        ],
        "more": max(0, found.total() - left.total() - LISTED),
    }
    return _ask(model_admin, request, rows, context)


def erase(model_admin: Any, request: HttpRequest, rows: QuerySet[StoredEvent]) -> HttpResponse | None:
    """Ask first; then erase the payloads of these events and discard what is owed of them."""
    rows = _asked_for(request, rows)
    ids = list(rows.order_by("pk").values_list("event_id", flat=True)[: MOST_EVENTS + 1])
    if is_too_many(model_admin, request, len(ids), MOST_EVENTS):
        return None
    events = many(len(ids), "event", "events")
    if not _is_confirmed(request):
        context = {
            "action": "erase",
            "title": "Erase payloads?",
            "question": f"Erase the payload of {events} for good, and discard what is owed of them?",
            "is_any": bool(ids),
            "button": f"Erase the payload of {events}",
            "listed": [readable.visible(f"{row.type} {row.event_id}") for row in rows[:LISTED]],
            "more": max(0, len(ids) - LISTED),
        }
        return _ask(model_admin, request, rows, context)
    discarded = sum(upkeep.erase(event_id) for event_id in ids)
    tried = sum(upkeep.is_being_tried(event_id) for event_id in ids)
    text = f"The payload of {events} was erased, and {many(discarded)} discarded."
    if tried:
        text += f" A delivery of {many(tried, 'event', 'events')} is {_TRIED}: that goes on."
    model_admin.message_user(request, text)
    _log(request, f"the payload of {events} was erased")
    return None


def pause(model_admin: Any, request: HttpRequest, rows: QuerySet[Delivery]) -> None:
    """Pause the targets of these deliveries."""
    places = sorted(set(rows.order_by().values_list("direction", "target").distinct()))
    new = [target for direction, target in places if upkeep.pause(direction, target)]
    if not new:
        model_admin.message_user(request, "Nothing was changed: paused already.", messages.WARNING)
        return
    text = f"Paused: {', '.join(new)}. What is owed to them waits until you resume them, under Pauses."
    model_admin.message_user(request, text)
    _log(request, f"paused {new!a}")


def resume(model_admin: Any, request: HttpRequest, rows: QuerySet[Pause]) -> None:
    """Let what is owed to these targets be tried again."""
    ended = [row.target for row in rows if upkeep.resume(row.direction, row.target)]
    model_admin.message_user(request, f"Resumed: {', '.join(ended) or 'none'}.")
    _log(request, f"resumed {ended!a}")


def possible(row: Any) -> list[str]:
    """Return the names of the actions that would change this delivery."""
    kind = Kind(
        row.state,
        is_tried=bool(row.lease) and row.due_ms > row.now_ms,
        is_due=row.due_ms <= row.now_ms,
        is_erased=row.is_erased,
    )
    remedies = {"retry": RETRY, "replay": REPLAY, "discard": DISCARD}
    return [name for name, remedy in remedies.items() if remedy.why_not(kind) is None]


def _ask(
    model_admin: Any, request: HttpRequest, rows: QuerySet[Any], context: dict[str, Any]
) -> TemplateResponse:
    shared = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "media": model_admin.media,
        "checkbox": helpers.ACTION_CHECKBOX_NAME,
        "chosen": request.POST.getlist(helpers.ACTION_CHECKBOX_NAME),
        "is_across": request.POST.get("select_across") == "1",
        "last": rows.order_by("-pk").values_list("pk", flat=True).first(),
    }
    return TemplateResponse(request, "admin/aevents/confirmation.html", {**shared, **context})


def _is_confirmed(request: HttpRequest) -> bool:
    return "confirmed" in request.POST


def _asked_for(request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
    """Return those of the rows that were there when the person was asked."""
    last = request.POST.get("last", "")
    return rows.filter(pk__lte=int(last)) if last.isascii() and last.isdecimal() else rows


def _left(found: Counter[Kind], remedy: Remedy) -> Counter[str]:
    left = Counter[str]()
    for kind, count in found.items():
        if reason := remedy.why_not(kind):
            left[reason] += count
    return left


def _listed(left: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in left.most_common())


def is_too_many(model_admin: Any, request: HttpRequest, count: int, most: int) -> bool:
    """Tell whether these are more than one request should change; says so to the person."""
    if count <= most:
        return False
    model_admin.message_user(
        request,
        f"Nothing was changed: these are more than {most:,}. Narrow them by the filters,"
        " or use `manage.py aevents`, which takes any number.",
        messages.ERROR,
    )
    return True


def many(count: int, one: str = "delivery", more: str = "deliveries") -> str:
    """Return a count with its noun."""
    return f"{count:,} {one if count == 1 else more}"


def _is(condition: Q) -> ExpressionWrapper[Any]:
    return ExpressionWrapper(condition, output_field=BooleanField())


def _log(request: HttpRequest, text: str) -> None:
    _logger.info("%s, by user %s in the admin", text, getattr(request.user, "pk", None))
