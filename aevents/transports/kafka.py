"""`kafka://` and `kafkas://`: Kafka, one topic for each event type, one consumer group for each service.

A message is a CloudEvent in Kafka's own binding: `ce_id`, `ce_type`, ... as headers in UTF-8, `content-type`,
`webhook-id`, `webhook-timestamp` and `webhook-signature` beside them, the event's key as the message's key.
What Kafka has confirmed (acks=all) is as durable as the topic's replicas and `min.insync.replicas` make it.

Options (`TRANSPORTS["kafka"]`): `PREFIX`; `PARTITIONS` (6) and `REPLICATION` (-1, the broker's default) of
the topics that are made here; `SASL` ("PLAIN"): the mechanism, where the URL has a user; `SESSION_S` (30):
after which a replica that is silent loses its partitions; `METADATA_S` (5): how often a service that wants
patterns looks for new topics.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from aevents.errors import DeliveryError, Refused, Unavailable
from aevents.settings import conf
from aevents.transports import kafka_source, topics
from aevents.transports.base import Destination, Wanted
from aevents.transports.broker import BrokerTransport, Outgoing
from aevents.transports.kafka_producer import Publisher, said
from aevents.transports.sources import Source
from aevents.transports.tls import Contexts

_PORT = 9092
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:,/@]+)(?::([0-9]{1,5}))?")
_SASL = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


class KafkaTransport(BrokerTransport):
    """An idempotent producer for each broker that is sent to; a consumer in its group for each `listen`."""

    schemes = ("kafka", "kafkas")
    keeps_order = True
    can_replay = True
    has_wildcards = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._publishers: dict[Destination, Publisher] = {}
        self._tls = Contexts()

    @classmethod
    def mistake_in(cls, url: str) -> str | None:
        try:
            address = _Address.of(url)
        except ValueError:
            return "it is no URL (what is special in a password must be percent-encoded)"
        if address.scheme not in cls.schemes:
            return "it must begin with kafka:// or kafkas://"
        if not address.hosts or None in address.hosts:
            return "it must have a host, or several with commas between them: kafka://one:9092,two:9092"
        if address.rest:
            return "nothing may stand after the hosts"
        return None

    async def publish(
        self, destination: Destination, messages: Sequence[Outgoing]
    ) -> Sequence[DeliveryError | None]:
        publisher = self._publishers.get(destination)
        if publisher is None:
            publisher = self._publishers[destination] = Publisher(
                functools.partial(self.settings, destination), self.make_topics
            )
        return await publisher.publish(messages)

    async def open(self, place: Destination, wanted: Wanted) -> Source:
        settings = await self.settings(place)
        wanted_topics = [topics.topic_of(each, self.prefix) for each in wanted.types]
        await self.make_topics(settings, wanted_topics)
        return await kafka_source.open_source(settings, self.prefix, wanted, self.options)

    async def close(self) -> None:
        for each in self._publishers.values():
            await each.close()
        self._publishers.clear()
        self._tls.close()

    def error_of(self, error: Exception) -> DeliveryError:
        return said(error) if isinstance(error, errors.KafkaError) else super().error_of(error)

    async def settings(self, destination: Destination) -> dict[str, Any]:
        """Return how a client of aiokafka reaches this broker."""
        address = _Address.of(destination.url)
        found: dict[str, Any] = {
            "bootstrap_servers": [f"{host[0]}:{host[1]}" for host in address.hosts if host],
            "client_id": "aevents",
        }
        if address.scheme == "kafkas":
            context = await self._tls.of(destination)
            context.set_alpn_protocols([])  # it is made for HTTP
            found["ssl_context"] = context
        if address.user is not None:
            mechanism = self.options.get("SASL", "PLAIN")
            if mechanism not in _SASL:
                raise Refused(f"the option SASL must be one of {', '.join(_SASL)}")
            found |= {
                "sasl_mechanism": mechanism,
                "sasl_plain_username": address.user,
                "sasl_plain_password": address.password or "",
            }
        security = "SSL" if address.scheme == "kafkas" else "PLAINTEXT"
        found["security_protocol"] = security if address.user is None else f"SASL_{security}"
        return found

    async def make_topics(self, settings: dict[str, Any], names: Iterable[str]) -> None:
        """Make the topics that are not there; to be done before a client asks for them.

        A broker that makes topics by itself makes them, once they are asked for, with a single partition.
        """
        async with contextlib.AsyncExitStack() as stack:
            admin = AIOKafkaAdminClient(**settings, request_timeout_ms=int(1000 * conf().LIMITS.ATTEMPT_S))
            stack.push_async_callback(admin.close)
            await admin.start()
            missing = sorted(set(names).difference(await admin.list_topics()))
            if not missing:
                return
            partitions = int(self.options.get("PARTITIONS", 6))
            replication = int(self.options.get("REPLICATION", -1))
            # -1 is allowed only together with an assignment, and none is one.
            placed: dict[int, list[int]] | None = {} if replication == -1 else None
            wanted = [NewTopic(name, partitions, replication, placed) for name in missing]
            reply = await admin.create_topics(wanted)
        for name, code, *detail in reply.topic_errors:
            error = errors.for_code(code)
            if error not in (errors.NoError, errors.TopicAlreadyExistsError):
                reason = " ".join(str(detail[0]).split())[:200] if detail and detail[0] else error.__name__
                raise Unavailable(f"the topic {name} cannot be made: {reason}", slowly=True)


class _Address(NamedTuple):
    scheme: str
    user: str | None
    password: str | None
    hosts: list[tuple[str, int] | None]  # None where it is none
    rest: str

    @classmethod
    @functools.lru_cache(256)  # asked for at each call
    def of(cls, url: str) -> _Address:
        parts = urlsplit(url)
        login, at, places = parts.netloc.rpartition("@")
        user, colon, password = login.partition(":")
        hosts = [_host_of(each) for each in places.split(",")] if places else []
        rest = parts.path.removeprefix("/") + parts.query + parts.fragment
        return cls(
            parts.scheme.lower(),
            unquote(user) if at else None,
            unquote(password) if colon else None,
            hosts,
            rest,
        )


def _host_of(text: str) -> tuple[str, int] | None:
    found = _HOST.fullmatch(text)
    if found is None or not 0 < int(found[2] or _PORT) < 65536:
        return None
    return found[1], int(found[2] or _PORT)
