"""As `wsgi`, with an emit at import: under `--preload` the courier of the master runs before the forks."""

import os

from django.core.wsgi import get_wsgi_application

from aevents import emit

application = get_wsgi_application()
emission = emit("told-at-import", {"n": 0, "pid": os.getpid()})
