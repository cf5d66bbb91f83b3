"""Facts that aevents announces. Receivers run in the thread that acts, so keep them short and sync.

Every signal carries `event` (an `aevents.event.Event`) as a keyword, but for the last two.
`log.py` is the listener that comes along; metrics and traces are yours to connect.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from django.dispatch import Signal

event_emitted = Signal()  #: `event`, `services`: an event was made, for these services
event_delivered = Signal()  #: `event`, `service`, `attempts`, `elapsed_s`, `verdict`
delivery_failed = Signal()  #: `event`, `service`, `attempts`, `elapsed_s`, `error`, `outcome`
delivery_dead = Signal()  #: `event`, `target`, `attempts`, `error`: kept, and tried no more
event_received = Signal()  #: `event`, `handlers`: an event arrived, for these handlers
event_duplicate = Signal()  #: `event`: it arrived again after every handler had succeeded
handler_succeeded = Signal()  #: `event`, `handler`, `elapsed_s`
handler_failed = Signal()  #: `event`, `handler`, `elapsed_s`, `error`
handler_deferred = Signal()  #: `event`, `handler`, `elapsed_s`, `in_s`: it raised `Again`
destination_down = Signal()  #: `service`, `failures`, `pause_s`, `error`: the circuit opened
destination_up = Signal()  #: `service`: the circuit closed again

_logger = logging.getLogger("aevents")


def is_heard(signal: Signal) -> bool:
    """Tell whether anybody listens to a fact that `log.py` writes at DEBUG: it is alone on most days."""
    return len(signal.receivers) > 1 or _logger.isEnabledFor(logging.DEBUG)


def announce(signal: Signal, **facts: Any) -> None:
    """Tell every receiver; a receiver that raises is logged and stops nobody."""
    try:
        for receiver, outcome in signal.send_robust(sender=None, **facts):
            if isinstance(outcome, Exception):
                _logger.error(
                    "A signal receiver failed: %r",
                    receiver,
                    exc_info=(type(outcome), outcome, outcome.__traceback__),
                )
    except (SystemExit, KeyboardInterrupt):
        if threading.current_thread() is threading.main_thread():
            raise  # the caller's own; in the courier's thread it would leave the event unsettled
        _logger.exception("A signal receiver asked the process to end")
    except Exception:  # an async receiver cannot be run from inside a running event loop
        _logger.exception("A signal receiver could not be run; receivers of aevents must be sync")
