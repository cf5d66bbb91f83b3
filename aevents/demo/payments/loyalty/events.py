"""Found by aevents itself: with the decorator an app needs no `ready()`."""

from typing import Any

from aevents import subscribe_to
from aevents.demo.payments.loyalty.models import Card, Voucher


@subscribe_to("user-created")
def give_card(payload: dict[str, Any]) -> None:
    Card.objects.get_or_create(user_id=payload["user_id"])


@subscribe_to("order-cancelled")
async def send_voucher(payload: dict[str, Any]) -> None:
    await Voucher.objects.aget_or_create(
        order_id=payload["order_id"], defaults={"user_id": payload["user_id"]}
    )
