"""The Django settings that all services share; each adds what is its own."""

import os
import secrets

SECRET_KEY = secrets.token_urlsafe()  # nothing that is signed outlives the demo
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["DATABASE"],
        "OPTIONS": {
            # Readers and the one writer go side by side; who wants to write waits from the beginning
            # of its transaction on, instead of failing in the midst of it.
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    }
}
