"""The verbs of `manage.py aevents`, each a module with one class behind the interface in `base.py`."""

from __future__ import annotations

from aevents.commands.base import Verb
from aevents.commands.discard import Discard
from aevents.commands.erase import Erase
from aevents.commands.overview import Overview
from aevents.commands.pause import Pause, Resume
from aevents.commands.prune import Prune
from aevents.commands.replay import Replay
from aevents.commands.secret import Secret
from aevents.commands.status import Status
from aevents.commands.transports import Transports
from aevents.commands.worker import Worker

#: What is done without a verb.
OVERVIEW: Verb = Overview()
VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Worker(),
        Status(),
        Replay(),
        Discard(),
        Pause(),
        Resume(),
        Prune(),
        Erase(),
        Secret(),
        Transports(),
    )
}
