"""What is written in one transaction with the events, and with what their handlers do."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Turn(models.Model):
    """The last number that was given out for a key: who holds its lock is the only one to write it."""

    objects: ClassVar[models.Manager[Turn]]

    key = models.CharField(max_length=50, primary_key=True)
    last = models.IntegerField(default=0)


class Emitted(models.Model):
    """The business row: an event with this token was emitted in the same transaction."""

    objects: ClassVar[models.Manager[Emitted]]

    token = models.CharField(max_length=100, primary_key=True)
    key = models.CharField(max_length=50, default="")
    number = models.IntegerField(default=0)  # of the key


class Effect(models.Model):
    """What one handler did for one event."""

    objects: ClassVar[models.Manager[Effect]]

    handler = models.CharField(max_length=50)
    token = models.CharField(max_length=100)
    key = models.CharField(max_length=50, default="")
    number = models.IntegerField(default=0)
