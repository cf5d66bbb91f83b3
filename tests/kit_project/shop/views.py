from django.http import JsonResponse

from aevents import aemit
from shop.services import place


def order(request):
    return JsonResponse({"outcomes": [result.outcome for result in place("viewed").results]})


async def aorder(request):
    emission = await aemit("order-placed", {"text": "aviewed"})
    return JsonResponse({"outcomes": [result.outcome for result in emission.results]})
