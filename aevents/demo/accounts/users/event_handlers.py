from typing import Any

from aevents.demo.accounts.users.models import User


def mark_customer(payload: dict[str, Any]) -> None:
    User.objects.filter(pk=payload["user_id"]).update(is_customer=True)
