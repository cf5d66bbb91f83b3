"""Who is where and who is told of what: one map, the same for every service."""

import os

SERVICES = {
    "accounts": f"http://127.0.0.1:{os.environ['ACCOUNTS_PORT']}/events/",
    "orders": f"http://127.0.0.1:{os.environ['ORDERS_PORT']}/events/",
    "payments": f"http://127.0.0.1:{os.environ['PAYMENTS_PORT']}/events/",
}

SUBSCRIPTIONS = {
    "user-created": ["orders", "payments"],
    "user-signed-out": ["orders"],
    "order-*": ["payments"],
    "payment-received": ["orders", "accounts"],
}
