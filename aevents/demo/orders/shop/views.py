from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST

from aevents import emit
from aevents.demo.orders.shop.models import Order

PRICES = {"lamp": 40, "chair": 90}


class OutOfStock(Exception):
    pass


@require_POST
def place_order(request: HttpRequest) -> JsonResponse:
    user_id, item = int(request.POST.get("user_id", "1")), request.POST.get("item", "lamp")
    try:
        with transaction.atomic():
            order = Order.objects.create(user_id=user_id, item=item)
            # It leaves when the order is committed, and never if it is not.
            emission = emit(
                "order-placed",
                {"order_id": order.pk, "user_id": user_id, "amount": PRICES.get(item, 0)},
            )
            take_from_stock(item)
    except OutOfStock as error:
        return JsonResponse({"detail": str(error)}, status=409)
    told = {result.service: result.outcome for result in emission.results}
    return JsonResponse({"order_id": order.pk, **told}, status=201)


@require_POST
def cancel_order(request: HttpRequest, order_id: int) -> JsonResponse:
    order = get_object_or_404(Order, pk=order_id)
    order.status = "cancelled"
    order.save()
    emission = emit("order-cancelled", {"order_id": order.pk, "user_id": order.user_id})
    return JsonResponse({result.service: result.outcome for result in emission.results})


def show_order(request: HttpRequest, order_id: int) -> JsonResponse:
    order = get_object_or_404(Order, pk=order_id)
    return JsonResponse({"item": order.item, "status": order.status})


def take_from_stock(item: str) -> None:
    if item not in PRICES:
        raise OutOfStock(f"no {item} left")
