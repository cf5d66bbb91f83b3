from typing import Any

from aevents import aemit, current_event
from aevents.demo.payments.billing.models import Account, Payment


class BankIsBusy(Exception):
    pass


async def open_account(payload: dict[str, Any]) -> None:
    await Account.objects.aget_or_create(user_id=payload["user_id"], defaults={"name": payload["name"]})


async def charge(payload: dict[str, Any]) -> None:
    # Delivered at least once, so it may run again: the order is charged once all the same.
    await Payment.objects.aget_or_create(order_id=payload["order_id"], defaults={"amount": payload["amount"]})
    await aemit("payment-received", payload)


def refund(payload: dict[str, Any]) -> None:
    event = current_event()
    if event is not None and event.attempt == 1:
        raise BankIsBusy("try again")
    Payment.objects.filter(order_id=payload["order_id"]).delete()
