from __future__ import annotations

from typing import ClassVar

from django.db import models


class Account(models.Model):
    objects: ClassVar[models.Manager[Account]]  # Django adds it; written here for type checkers

    user_id = models.BigIntegerField(unique=True)
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Payment(models.Model):
    objects: ClassVar[models.Manager[Payment]]

    order_id = models.BigIntegerField(unique=True)
    amount = models.IntegerField()

    def __str__(self) -> str:
        return f"{self.amount} for order {self.order_id}"
