from typing import Any

from aevents import subscribe_to
from aevents.demo.crash.models import Charge


@subscribe_to("order-placed")
def charge(payload: dict[str, Any]) -> None:
    Charge.objects.create(reference=payload["reference"])
