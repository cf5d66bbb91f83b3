"""What the processes of `test_moving.py` are, beside those of `crash_project.roles`. The launcher imports it.

A service that emits until it is told to end; a server and a worker that tell what has arrived, as the page's
`orders/metrics.py` counts it; and who looks at both stores.
"""

from __future__ import annotations

import itertools
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from django.core.management import call_command
from django.db import transaction
from django.db.models import Count

from aevents.models import Delivery
from tests.crash_project import roles
from tests.crash_project.models import Effect, Emitted

_TELL_EVERY_S = 0.1


def emit_on(tell: roles.Teller, *, keys: Sequence[str], seed: int, pause_s: float) -> int:
    """Emit, each event in one transaction with its business row, until SIGTERM; then drain."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    generator = random.Random(seed)
    tell(ready=True)
    for nth in itertools.count():
        try:
            with transaction.atomic():
                roles._transact(generator, f"{tell.name}/{nth}", keys)
        except roles._Undone:
            pass
        time.sleep(pause_s)
    return 0


def serve(tell: roles.Teller, **arguments: Any) -> int:
    """A server that tells what has arrived."""
    _begin_to_count(tell)
    return roles.receive(tell, **arguments)


def listen(tell: roles.Teller, **arguments: Any) -> int:
    """A worker that tells what has arrived, and where it listens."""
    logging.getLogger("aevents").addFilter(lambda record: _tell_where(tell, record))
    _begin_to_count(tell)
    return roles.work(tell, **arguments)


def _tell_where(tell: roles.Teller, record: logging.LogRecord) -> bool:
    if record.getMessage().startswith("Listening to"):
        tell(logged=record.getMessage())
    return True


def _begin_to_count(tell: roles.Teller) -> None:
    from orders.metrics import arrived  # type: ignore[import-not-found]  # it stands on the page

    def tell_on() -> None:
        while True:
            tell(received=arrived["received", "placed"], duplicate=arrived["duplicate", "placed"])
            time.sleep(_TELL_EVERY_S)

    threading.Thread(target=tell_on, daemon=True).start()


def say(tell: roles.Teller, *, verb: Sequence[str]) -> int:
    """`manage.py aevents <verb>`."""
    call_command("aevents", *verb)
    return 0


def look(tell: roles.Teller) -> int:
    """Tell again and again what was emitted, what was done, and what is owed to whom."""
    tell(ready=True)
    while True:
        emitted = Emitted.objects.using("default").count()
        owed = Delivery.objects.using("default").values_list("target").annotate(Count("pk"))
        effects = Effect.objects.using("orders").count()
        stored = Delivery.objects.using("orders").count()
        tell(emitted=emitted, owed=dict(owed), stored=stored, effects=effects)
        time.sleep(_TELL_EVERY_S)


roles.ROLES.update({"emit-on": emit_on, "serve": serve, "listen": listen, "say": say, "look": look})
