"""The ways over the network: siblings behind `base.Transport`, one file for each scheme."""

from __future__ import annotations

import os
import threading
from urllib.parse import urlsplit

from django.utils.module_loading import import_string

from aevents.errors import Refused
from aevents.settings import conf
from aevents.transports.base import Transport

BUILT_IN = {
    "http": "aevents.transports.http.HttpTransport",
    "https": "aevents.transports.http.HttpTransport",
    "local": "aevents.transports.local.LocalTransport",
    "memory": "aevents.transports.memory.MemoryTransport",
    "redis": "aevents.transports.redis.RedisTransport",
    "rediss": "aevents.transports.redis.RedisTransport",
    "amqp": "aevents.transports.rabbitmq.RabbitTransport",
    "amqps": "aevents.transports.rabbitmq.RabbitTransport",
    "kafka": "aevents.transports.kafka.KafkaTransport",
    "kafkas": "aevents.transports.kafka.KafkaTransport",
    "nats": "aevents.transports.nats.NatsTransport",
    "natss": "aevents.transports.nats.NatsTransport",
    "tcp": "aevents.transports.tcp.TcpTransport",
    "tcps": "aevents.transports.tcp.TcpTransport",
}
#: The extra of aevents that brings the client of a scheme, and the name by which the client is imported.
EXTRAS = {
    "redis": ("redis", "redis"),
    "rediss": ("redis", "redis"),
    "amqp": ("rabbitmq", "aio_pika"),
    "amqps": ("rabbitmq", "aio_pika"),
    "kafka": ("kafka", "aiokafka"),
    "kafkas": ("kafka", "aiokafka"),
    "nats": ("nats", "nats"),
    "natss": ("nats", "nats"),
}


# A fork waits for an import that another thread is in: half a module would be the child's for ever.
_importing = threading.RLock()
os.register_at_fork(
    before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release
)


def scheme_of(url: str) -> str:
    """Return the lower-case scheme of `url`, empty where it has none."""
    try:
        return urlsplit(url).scheme.lower()
    except ValueError:
        return ""


def transport_class(scheme: str) -> type[Transport]:
    """Return the class that carries `scheme`; raises `Refused` where there is none."""
    options = conf().TRANSPORTS.get(scheme, {})
    path = options.get("BACKEND") or BUILT_IN.get(scheme)
    if path is None:
        known = ", ".join(sorted({*BUILT_IN, *conf().TRANSPORTS}))
        raise Refused(f"no transport for the scheme {scheme!r} (there are: {known})")
    try:
        with _importing:
            found = import_string(path)
    except ImportError as error:
        extra, client = EXTRAS.get(scheme, ("", ""))
        if client and (error.name or "").partition(".")[0] == client:
            raise Refused(f"{scheme}:// needs a client: pip install 'aevents[{extra}]'") from error
        raise Refused(f"the transport of {scheme!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Transport)):
        raise Refused(f"the transport of {scheme!r} is no subclass of Transport: {path}")
    return found
