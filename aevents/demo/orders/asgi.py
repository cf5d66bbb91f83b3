"""`uvicorn aevents.demo.orders.asgi:application`."""

import os

from django.core.asgi import get_asgi_application

from aevents.asgi import lifespan

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aevents.demo.orders.settings")
application = lifespan(get_asgi_application())
