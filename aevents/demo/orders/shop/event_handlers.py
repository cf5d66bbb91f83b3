from typing import Any

from aevents.demo.orders.shop.models import Customer, Order


def add_customer(payload: dict[str, Any]) -> None:
    Customer.objects.get_or_create(user_id=payload["user_id"], defaults={"name": payload["name"]})


async def mark_paid(payload: dict[str, Any]) -> None:
    await Order.objects.filter(pk=payload["order_id"]).aupdate(status="paid")
