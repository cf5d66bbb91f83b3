from __future__ import annotations

from typing import ClassVar

from django.db import models


class Customer(models.Model):
    objects: ClassVar[models.Manager[Customer]]  # Django adds it; written here for type checkers

    user_id = models.BigIntegerField(unique=True)
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    objects: ClassVar[models.Manager[Order]]

    user_id = models.BigIntegerField()
    item = models.CharField(max_length=100)
    status = models.CharField(max_length=20, default="placed")

    def __str__(self) -> str:
        return f"{self.item} ({self.status})"
