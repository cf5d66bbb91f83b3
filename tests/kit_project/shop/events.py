import threading

from django.db import transaction
from django.utils import timezone, translation

from aevents import aemit, current_event, emit, subscribe_to
from shop.models import Order

#: What the handlers saw, for the tests to look at.
seen = []


@subscribe_to("stock-arrived")
def fill(payload):
    seen.append(
        (threading.current_thread(), translation.get_language(), timezone.get_current_timezone_name())
    )
    Order.objects.filter(text=payload["text"]).update(text="filled")
    emit("order-filled", {"text": payload["text"]})


@subscribe_to("stock-arrived")
async def note(payload):
    event = current_event()
    seen.append((event.type, event.source, event.attempt))
    await Order.objects.acreate(text="noted")
    await aemit("told", payload)


@subscribe_to("one-fails")
def fails(payload):
    Order.objects.create(text="half done")
    raise ValueError("no")


@subscribe_to("one-fails")
async def works(payload):
    seen.append("works")


@subscribe_to("two-fail")
def fails_first(payload):
    raise ValueError("first")


@subscribe_to("two-fail")
async def fails_second(payload):
    raise KeyError("second")


@subscribe_to("no-database", atomic=False)
def needs_nothing(payload):
    seen.append(payload)


@subscribe_to("hooked")
def hooks(payload):
    transaction.on_commit(lambda: seen.append("committed"))
