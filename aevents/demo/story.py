"""The scenes: what is about to be seen, who does it, and every fact that must follow, no more."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from aevents.demo.client import Request


@dataclass(frozen=True)
class Scene:
    """One step. `must_see` has a line for each fact: service, what, event, who."""

    title: str
    must_see: str
    starts: tuple[str, ...] = ()
    request: Request | None = None

    @property
    def keys(self) -> Counter[str]:
        """The keys of the facts that must be seen, each as often as it stands there."""
        lines = (" ".join(line.split()) for line in self.must_see.splitlines())
        return Counter(line for line in lines if line)


SCENES = (
    Scene(
        "accounts and orders start; payments stays down for a while.",
        starts=("accounts", "orders"),
        must_see="""
            accounts  started
            orders    started
        """,
    ),
    Scene(
        "Ada signs up, an async view awaits aemit(). orders takes the event; payments is down, so after"
        " three tries the event is `parked`: stored in accounts' database, and tried again by itself.",
        request=Request("accounts", "/sign-up/", {"name": "Ada"}),
        must_see="""
            accounts  emitted    user-created  orders, payments
            orders    handled    user-created  shop.add_customer
            accounts  delivered  user-created  orders
            accounts  retried    user-created  payments
            accounts  retried    user-created  payments
            accounts  parked     user-created  payments
            accounts  answered   /sign-up/     201 user_id=1 orders=delivered payments=parked
        """,
    ),
    Scene(
        "payments comes up, and some seconds later it has what it missed.",
        starts=("payments",),
        must_see="""
            payments  started
            payments  handled    user-created  billing.open_account
            payments  handled    user-created  loyalty.give_card
            accounts  delivered  user-created  payments
        """,
    ),
    Scene(
        "Grace signs up: one event, two services, and in payments two apps handle it, one with an async"
        " handler and one with a sync one.",
        request=Request("accounts", "/sign-up/", {"name": "Grace"}),
        must_see="""
            accounts  emitted    user-created  orders, payments
            orders    handled    user-created  shop.add_customer
            payments  handled    user-created  billing.open_account
            payments  handled    user-created  loyalty.give_card
            accounts  delivered  user-created  orders
            accounts  delivered  user-created  payments
            accounts  answered   /sign-up/     201 user_id=2 orders=delivered payments=delivered
        """,
    ),
    Scene(
        "Grace orders a lamp: a sync view saves it and calls emit() in one transaction, so the event is"
        " `queued` and leaves at the commit. The handler that charges her emits in its turn.",
        request=Request("orders", "/orders/", {"user_id": "2", "item": "lamp"}),
        must_see="""
            orders    emitted    order-placed      payments
            orders    answered   /orders/          201 order_id=1 payments=queued
            payments  emitted    payment-received  orders, accounts
            payments  handled    order-placed      billing.charge
            orders    delivered  order-placed      payments
            orders    handled    payment-received  shop.mark_paid
            accounts  handled    payment-received  users.mark_customer
            payments  delivered  payment-received  orders
            payments  delivered  payment-received  accounts
        """,
    ),
    Scene(
        "The order is paid by now: the event came back to orders.",
        request=Request("orders", "/orders/1/"),
        must_see="orders answered /orders/1/ 200 item=lamp status=paid",
    ),
    Scene(
        "Grace orders a unicorn, which is out of stock: the transaction is rolled back after emit(), and"
        " nothing leaves.",
        request=Request("orders", "/orders/", {"user_id": "2", "item": "unicorn"}),
        must_see="""
            orders  emitted   order-placed  payments
            orders  answered  /orders/      409 detail=no unicorn left
        """,
    ),
    Scene(
        "Ada signs out. orders is told but has no handler for it, which is no error on either side.",
        request=Request("accounts", "/sign-out/", {"user_id": "1"}),
        must_see="""
            accounts  emitted    user-signed-out  orders
            orders    unhandled  user-signed-out
            accounts  delivered  user-signed-out  orders
            accounts  answered   /sign-out/       200 orders=delivered
        """,
    ),
    Scene(
        "Grace cancels her order. One of two handlers in payments fails at first. That is its own affair:"
        " payments owns the event, and runs only that handler again.",
        request=Request("orders", "/orders/1/cancel/", {}),
        must_see="""
            orders    emitted    order-cancelled    payments
            payments  handled    order-cancelled    loyalty.send_voucher
            payments  raised     order-cancelled    billing.refund
            payments  handled    order-cancelled    billing.refund
            orders    delivered  order-cancelled    payments
            orders    answered   /orders/1/cancel/  200 payments=delivered
        """,
    ),
)
