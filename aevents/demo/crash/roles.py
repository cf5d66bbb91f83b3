"""The other processes of orders: `python -m aevents.demo.crash.roles emitter` or `worker`.

Both end with the runner, which holds the other end of stdin, as those of `aevents.demo.service` do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import uuid

import django
from django.core.management import call_command

from aevents.demo import reporter
from aevents.demo.service import at_end_of_stdin

_BETWEEN_ORDERS_S = 0.005
_FAILS_EACH = 10


class OutOfStock(Exception):
    pass


def place_orders() -> None:
    """Place one order after another, each with its event; every tenth is rolled back."""
    from django.db import transaction

    from aevents import emit
    from aevents.demo.crash.models import Order

    call_command("migrate", run_syncdb=True, verbosity=0)
    is_over = threading.Event()
    at_end_of_stdin(is_over.set)
    reporter.report("started", detail="places orders")
    number = 0
    while not is_over.is_set():
        number += 1
        with contextlib.suppress(OutOfStock), transaction.atomic():
            order = Order.objects.create(reference=uuid.uuid4().hex)
            emit("order-placed", {"reference": order.reference})
            if number % _FAILS_EACH == 0:
                raise OutOfStock
        time.sleep(_BETWEEN_ORDERS_S)


def work() -> None:
    """Run `manage.py aevents worker`."""
    at_end_of_stdin(lambda: os.kill(os.getpid(), signal.SIGTERM))
    reporter.report("started", detail="manage.py aevents worker")
    call_command("aevents", "worker")


if __name__ == "__main__":
    django.setup()
    {"emitter": place_orders, "worker": work}[sys.argv[1]]()
