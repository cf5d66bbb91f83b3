from __future__ import annotations

from typing import ClassVar

from django.db import models


class User(models.Model):
    objects: ClassVar[models.Manager[User]]  # Django adds it; written here for type checkers

    name = models.CharField(max_length=100)
    is_customer = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.name
