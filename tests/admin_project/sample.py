"""Something to look at: a store in which much has gone wrong, and who may see it.

    ADMIN_PROJECT=/tmp/somewhere DJANGO_SETTINGS_MODULE=tests.admin_project.settings \
        python -m tests.admin_project.sample
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from aevents import store, tables, upkeep
from aevents.event import Event, new_id
from aevents.store import Entry, Owed
from aevents.tables import IN, OUT

SCRIPT = "<script>alert(1)</script>"


def an_event(event_type: str = "user-created", data: bytes = b'{"user_id":7}', **more: Any) -> Event:
    """Return an event with an id of its own."""
    values = {"id": new_id(), "source": "accounts", "time": datetime.now(UTC) - timedelta(minutes=3), **more}
    return Event(type=event_type, data=data, **values)


def put(event: Event, *owed: Owed, direction: int = OUT) -> Event:
    """Store an event with who is owed it."""
    store.add([Entry(direction, event, owed)])
    return event


def fill() -> None:
    """Store one of each kind."""
    refused = "503 Service Unavailable: no healthy upstream, and a long text that goes on " + "and on " * 40
    down = "ConnectionRefusedError: [Errno 111] connect to payments.internal:443"
    put(an_event(), dead("payments", down), Owed("orders", attempts=4, due_in_s=1800, error=refused))
    order = '{"order":"A-17","lines":[{"sku":"größe","n":2},{"sku":"y","n":1}],"total":"9.90"}'.encode()
    put(an_event("order-paid", order, key="A-17"), Owed("payments", attempts=2, due_in_s=30, error="timeout"))
    put(an_event("order-paid", key="A-17"), Owed("payments"))
    put(an_event("order-shipped"), Owed("orders", is_leased=True))
    html = f'{{"html":"{SCRIPT}","rtl":"\u202egnp.exe"}}'.encode()
    put(an_event(f"x{SCRIPT}", html), dead("payments", SCRIPT))
    terminal = an_event("\x1b[31mred\x1b[0m", b'{"terminal":"\x1b[2J"}', key="\x07bell")
    put(terminal, dead("payments", "\x1b[31mfailed"))
    long = b'{"rows":[' + b'"0123456789",' * 12_000 + b"0]}"
    put(an_event("report-made", long), Owed("reports", attempts=1, due_in_s=-90))
    gone = put(an_event("user-deleted"), dead("payments", "410 Gone"))
    tables.events().filter(event_id=gone.id).update(payload=None)
    lost = "SMTPServerDisconnected: Connection unexpectedly closed"
    mail = Owed("accounts.handlers.send_welcome_mail", attempts=3, due_in_s=600, error=lost)
    put(an_event(), mail, dead("accounts.handlers.add_customer", "KeyError: 'user_id'"), direction=IN)
    done(an_event("user-renamed"), "orders")
    upkeep.pause(OUT, "reports")


def dead(target: str, error: str) -> Owed:
    """Return what has been tried to the end."""
    return Owed(target, attempts=16, error=error, is_dead=True)


def done(event: Event, target: str, direction: int = OUT) -> Event:
    """Store an event that was delivered; it is kept where `HISTORY_DAYS` says so."""
    store.add([Entry(direction, event, (Owed(target, is_leased=True),))])
    row = tables.deliveries().get(event__event_id=event.id, target=target)
    tables.deliveries().filter(pk=row.pk).update(state=tables.DONE, lease="")
    return event


def main() -> None:
    """Make the tables, the users `ada` (all) and `eve` (who may only look), and the sample."""
    import django
    from django.core.management import call_command

    django.setup()
    from django.contrib.auth.models import Permission, User

    for alias in ("people", "store"):
        call_command("migrate", database=alias, verbosity=0)
    User.objects.create_superuser("ada", password="ada")
    eve = User.objects.create_user("eve", password="eve", is_staff=True)
    eve.user_permissions.set(
        Permission.objects.filter(codename__in=["view_delivery", "view_storedevent", "view_pause"])
    )
    fill()


if __name__ == "__main__":
    main()
