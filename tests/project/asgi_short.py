from django.core.asgi import get_asgi_application

from aevents.asgi import receiver

application = receiver(get_asgi_application())
