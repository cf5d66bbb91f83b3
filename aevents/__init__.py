"""Events between Django services: `emit`, `aemit`, `subscribe_to`.

The road of an event, one module a station (each imports only from the ones below it):

    urls  apps  pytest_plugin  commands   what Django and pytest start
    commands/overview  commands/worker  commands/replay  commands/discard
    commands/pause  commands/prune  commands/erase
    commands/status  commands/selection  commands/secret  commands/transports
    commands/base
    views  asgi  testing  admin    what drives the road
    columns  remedies  filters     the admin's: what it says of a row, does to it, chooses by
    listening                      what comes from where LISTEN says
    letters
    emitter  receiver  relay  readable    the two halves, and what is owed again
    intake                         a batch that arrived
    outbox  inbox  status          what each half stores first
    courier  checks                the process's one event loop for deliveries
    checks_of_places  transports/contract_of_brokers
    arrivals  lane  replies  checks_of_trust  transports/contract_of_listening
    convoy  endings  routes  dispatcher  recorder  composer  transports/local  transports/contract
    transports  transports/http  transports/memory  transports/contract_of_batches  parking  backlog  home
    transports/redis  transports/rabbitmq  transports/kafka  transports/nats  transports/tcp
    transports/rabbitmq_queue  transports/kafka_producer  transports/nats_source
    transports/redis_streams  transports/kafka_source  transports/nats_places  transports/tcp_server
    transports/rehearsal  transports/nats_connection  transports/tcp_caller  transports/tcp_client
    transports/kafka_reader  transports/kafka_batches
    transports/broker
    transports/sources  transports/bindings  transports/frames
    outcomes  shipment  upkeep
    keeper                         the process's one thread for the store
    holdings  jobs  calls
    queues
    turns
    store  claims                  into the tables and out again: each change a verb
    batch  transports/offers  transports/tls  pace
    cloudevents
    tables  wire  retry  breaker  subscriptions  log  loops  scope  recent  returns  commits  outage
    models  rows  transports/base  transports/connection  keyring
    signature
    transports/guard  transports/names  transports/topics  transports/nats_client
    event  threads
    emission  answer  payload  settings  errors  signals

An event goes  emit -> emitter -> routes -> courier -> lane -> transport  ~~ network ~~
views -> receiver -> wire -> inbox -> dispatcher -> handler. What does not get through goes
lane -> parking -> keeper -> store, and comes back by the relay.
"""

from django.core import checks as _checks

from aevents import receiver as _receiver  # noqa: F401 - one's own events are received in the process
from aevents import relay as _relay  # noqa: F401 - what is owed is tried again by every process
from aevents.checks import check_deployment as _check_deployment
from aevents.checks import check_settings as _check_settings
from aevents.emission import Emission, Result
from aevents.emitter import aemit, aemit_many, emit, emit_many, flush
from aevents.errors import Again, Dead, InvalidEvent
from aevents.event import Event
from aevents.scope import current_event, suppressed
from aevents.subscriptions import subscribe_to

# Here and not in the app's `ready`: that it is missing from INSTALLED_APPS is one of the findings.
_checks.register(_check_settings, "aevents")
_checks.register(_check_deployment, "aevents", deploy=True)

__version__ = "0.1.0"
__all__ = [
    "Again",
    "Dead",
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
