from django.db import transaction

from aevents import emit
from shop.models import Order


@transaction.atomic
def place(text, *, then_fail=False):
    order = Order.objects.create(text=text)
    emission = emit("order-placed", {"order_id": order.pk, "text": text})
    if then_fail:
        raise ValueError("after the emit")
    return emission
