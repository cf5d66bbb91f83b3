from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction

from aevents import emit


class Command(BaseCommand):
    help = "Emits one event that is waited for, and one that is handed over as the command ends."

    def handle(self, *args: Any, **options: Any) -> None:
        emission = emit("told-waited", {"n": 1})
        with transaction.atomic():
            queued = emit("told-queued", {"n": 2})
        self.stdout.write(f"{emission.results[0].outcome} {queued.results[0].outcome}")
