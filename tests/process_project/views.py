from __future__ import annotations

import os

from asgiref.sync import sync_to_async
from django.db import transaction
from django.http import HttpRequest, JsonResponse

from aevents import Emission, aemit, emit


def who(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"pid": os.getpid()})


def emits(request: HttpRequest, n: int) -> JsonResponse:
    return _answer(emit("told-sync", {"n": n, "pid": os.getpid()}))


async def aemits(request: HttpRequest, n: int) -> JsonResponse:
    return _answer(await aemit("told-async", {"n": n, "pid": os.getpid()}))


def hands_over(request: HttpRequest, n: int) -> JsonResponse:
    with transaction.atomic():
        return _answer(emit("told-after-commit", {"n": n, "pid": os.getpid()}))


async def does_both(request: HttpRequest, n: int) -> JsonResponse:
    """Hand over as many as `n` events and wait for one more; when it has arrived, the same with one."""
    await sync_to_async(_hand_over)(n)
    await aemit("told-async", {"n": n, "pid": os.getpid()})
    await sync_to_async(_hand_over)(1)
    return _answer(await aemit("told-last", {"n": n, "pid": os.getpid()}))


def _hand_over(times: int) -> None:
    with transaction.atomic():
        for n in range(times):
            emit("told-after-commit", {"n": n, "pid": os.getpid()})


def _answer(emission: Emission) -> JsonResponse:
    (result,) = emission.results
    return JsonResponse(
        {"id": emission.id, "outcome": result.outcome, "error": result.error, "pid": os.getpid()}
    )
