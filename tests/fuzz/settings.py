"""The project of `tests.process_project` with a secret: what is signed is verified, the rest taken too."""

from tests.fuzz.targets import FLEET
from tests.process_project.settings import *  # noqa: F403
from tests.process_project.settings import AEVENTS as _AEVENTS

AEVENTS = {**_AEVENTS, "SECRETS": [FLEET]}
