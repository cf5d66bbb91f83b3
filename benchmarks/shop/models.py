"""The business row, and an outbox row as one would write it by hand."""

from __future__ import annotations

import uuid

from django.db import models


class Order(models.Model):
    """The business row."""

    customer = models.IntegerField()
    total = models.DecimalField(max_digits=10, decimal_places=2)
    note = models.CharField(max_length=200)
    placed_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"order {self.pk}"


class OutboxRow(models.Model):
    """An event that waits for a relay that somebody would write."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    type = models.CharField(max_length=200)
    payload = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    sent_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.type} {self.id}"
