from __future__ import annotations

from typing import ClassVar

from django.db import models


class Order(models.Model):
    """What orders sells."""

    objects: ClassVar[models.Manager[Order]]  # Django adds it; written here for type checkers

    reference = models.CharField(max_length=32)

    def __str__(self) -> str:
        return self.reference


class Charge(models.Model):
    """What payments does for an order. Not unique, so that a second one would be seen."""

    objects: ClassVar[models.Manager[Charge]]

    reference = models.CharField(max_length=32)

    def __str__(self) -> str:
        return self.reference
