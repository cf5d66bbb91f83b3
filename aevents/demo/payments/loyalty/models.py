from __future__ import annotations

from typing import ClassVar

from django.db import models


class Card(models.Model):
    objects: ClassVar[models.Manager[Card]]  # Django adds it; written here for type checkers

    user_id = models.BigIntegerField(unique=True)

    def __str__(self) -> str:
        return f"card of user {self.user_id}"


class Voucher(models.Model):
    objects: ClassVar[models.Manager[Voucher]]

    order_id = models.BigIntegerField(unique=True)
    user_id = models.BigIntegerField()

    def __str__(self) -> str:
        return f"voucher for order {self.order_id}"
