from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

from aevents import aemit
from aevents.demo.accounts.users.models import User


@require_POST
async def sign_up(request: HttpRequest) -> JsonResponse:
    user = await User.objects.acreate(name=request.POST.get("name", "Ada"))
    emission = await aemit("user-created", {"user_id": user.pk, "name": user.name})
    told = {result.service: result.outcome for result in emission.results}
    return JsonResponse({"user_id": user.pk, **told}, status=201)


@require_POST
async def sign_out(request: HttpRequest) -> JsonResponse:
    emission = await aemit("user-signed-out", {"user_id": request.POST.get("user_id", "1")})
    return JsonResponse({result.service: result.outcome for result in emission.results})
