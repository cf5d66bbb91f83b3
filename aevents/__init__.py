"""Events between Django services: `emit`, `aemit`, `subscribe_to`.

The road of an event, one module a station (each imports only from the ones below it):

    urls  apps  pytest_plugin      what Django and pytest start
    views  asgi  checks  testing   what drives the road
    emitter  receiver              the two halves; they never meet
    courier                        the process's one event loop for deliveries
    arrivals  lane  routes  dispatcher  recorder  transports/local  transports/contract
    transports  transports/http  transports/memory  transports/rehearsal
    wire  retry  breaker  subscriptions  log  loops  scope  recent  returns  commits  shipment
    transports/base  transports/connection
    transports/guard  transports/names
    event  threads
    emission  answer  payload  settings  errors  signals

An event goes  emit -> emitter -> routes -> courier -> lane -> transport  ~~ network ~~
views -> receiver -> wire -> dispatcher -> handler.
"""

from aevents import receiver as _receiver  # noqa: F401 - one's own events are received in the process
from aevents.emission import Emission, Result
from aevents.emitter import aemit, aemit_many, emit, emit_many, flush
from aevents.errors import InvalidEvent
from aevents.event import Event
from aevents.scope import current_event, suppressed
from aevents.subscriptions import subscribe_to

__version__ = "0.1.0"
__all__ = [
    "Emission",
    "Event",
    "InvalidEvent",
    "Result",
    "aemit",
    "aemit_many",
    "current_event",
    "emit",
    "emit_many",
    "flush",
    "subscribe_to",
    "suppressed",
]
