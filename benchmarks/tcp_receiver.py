"""The project of `receiver.py`, listening over TCP as the worker does: the port is its argument."""

from __future__ import annotations

import sys
import time

from django.conf import settings

from benchmarks import receiver  # noqa: F401 - which sets Django up, and subscribes the handler

settings.AEVENTS = {**settings.AEVENTS, "LISTEN": [f"tcp://127.0.0.1:{sys.argv[1]}"]}

from aevents.listening import listening  # noqa: E402 - the settings first

listening.begin()
while True:
    time.sleep(60)
