from django.core.asgi import get_asgi_application

from aevents.asgi import lifespan

application = lifespan(get_asgi_application())
