"""`kafka://` and `kafkas://`: Kafka, one topic for each event type, one consumer group for each service.

A message is a CloudEvent in Kafka's own binding: `ce_id`, `ce_type`, ... as headers in UTF-8, `content-type`,
`webhook-id`, `webhook-timestamp` and `webhook-signature` beside them, the event's key as the message's key.
What Kafka has confirmed (acks=all) is as durable as the topic's replicas and `min.insync.replicas` make it.

Options (`TRANSPORTS["kafka"]`): `PREFIX`; `PARTITIONS` (6) and `REPLICATION` (-1, the broker's default) of the
topics that are made here; `SASL` ("PLAIN"): the mechanism, where the URL has a user; `SESSION_S` (30): after
which a replica that is silent loses its partitions; `METADATA_S` (5): how often a service that wants patterns
looks for new topics.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from aiokafka import AIOKafkaProducer, errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from aevents.errors import DeliveryError, Refused, Unavailable
from aevents.settings import conf
from aevents.transports import kafka_source, topics
from aevents.transports.base import Destination, Wanted
from aevents.transports.broker import BrokerTransport, Outgoing, Source, plain, text_of
from aevents.transports.tls import Contexts

_PORT = 9092
_BATCH_BYTES = 64 * 1024  # of one partition's messages; no broker's limit is below it
_LARGEST_BYTES = 2**30  # what is too large is the broker's to say
_CLOSE_S = 2.0
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
            publisher = self._publishers[destination] = Publisher(self, destination)
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

        A broker that makes topics by itself makes them, as soon as they are asked for, with a single partition.
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


class Publisher:
    """The producer of one broker: made when it is needed, and thrown away once anything of it has failed.

    A message that failed leaves a gap in the numbers of an idempotent producer, after which the broker takes
    nothing more of that partition from it; and one whose sending was given up would still be sent, later.
    """

    def __init__(self, transport: KafkaTransport, destination: Destination) -> None:
        self._transport = transport
        self._destination = destination
        self._producer: Any = None
        self._settings: dict[str, Any] = {}
        self._starting = asyncio.Lock()
        self._endings: set[asyncio.Task[None]] = set()

    async def publish(self, messages: Sequence[Outgoing]) -> list[DeliveryError | None]:
        """Send all of them, and return how each fared once the broker has said so of all."""
        producer = await self._started()
        is_well = False
        try:
            await self._know_topics(producer, {message.topic for message in messages})
            found = await _sent(producer, messages)
            is_well = not any(found)
            return found
        finally:
            if not is_well:
                self._throw_away(producer)

    async def close(self) -> None:
        """Close the producer, and wait for the ends of earlier ones."""
        if self._producer is not None:
            self._throw_away(self._producer)
        if self._endings:
            await asyncio.wait(self._endings)

    async def _started(self) -> Any:
        async with self._starting:
            if self._producer is None:
                self._settings = await self._transport.settings(self._destination)
                producer = AIOKafkaProducer(
                    **self._settings,
                    acks="all",
                    enable_idempotence=True,
                    max_batch_size=_BATCH_BYTES,
                    max_request_size=_LARGEST_BYTES,
                    request_timeout_ms=int(1000 * conf().LIMITS.ATTEMPT_S),
                )
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    async def _know_topics(self, producer: Any, names: set[str]) -> None:
        # With no topics of its own the client asks for all, and so makes none: see `make_topics`.
        def unknown() -> list[str]:
            return [name for name in names if producer.client.cluster.partitions_for_topic(name) is None]

        if not unknown():
            return
        await producer.client.force_metadata_update()
        if missing := unknown():
            await self._transport.make_topics(self._settings, missing)
        while unknown():
            await producer.client.force_metadata_update()
            await asyncio.sleep(0.02)

    def _throw_away(self, producer: Any) -> None:
        if self._producer is producer:
            self._producer = None
        producer._sender.sender_task.cancel()  # before anything of it is sent once more
        ending = asyncio.ensure_future(_ended(producer))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


async def _sent(producer: Any, messages: Sequence[Outgoing]) -> list[DeliveryError | None]:
    futures: list[asyncio.Future[Any]] = []
    try:
        for message in messages:
            futures.append(await _enqueued(producer, message))
        results = await asyncio.gather(*futures, return_exceptions=True)
    except BaseException:
        for each in futures:
            each.cancel()
            if not each.cancelled():
                each.exception()
        raise
    return [_fared(message, result) for message, result in zip(messages, results, strict=True)]


async def _enqueued(producer: Any, message: Outgoing) -> asyncio.Future[Any]:
    headers = plain(message.headers, kafka_source.ATTRIBUTES)
    future: asyncio.Future[Any] = await producer.send(
        message.topic,
        message.body,
        key=None if message.key is None else message.key.encode("utf-8", "surrogatepass"),
        headers=[(name, value.encode("utf-8", "surrogatepass")) for name, value in headers.items()],
    )
    return future


def _fared(message: Outgoing, result: Any) -> DeliveryError | None:
    if not isinstance(result, BaseException):
        return None
    is_size = isinstance(result, (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError))
    if is_size and len(message.body) >= _BATCH_BYTES:  # so that it was alone
        return Refused(f"the broker takes no message of {len(message.body)} bytes: {text_of(result)}")
    return said(result)


_SLOW = (
    errors.AuthenticationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.InvalidReplicationFactorError,
    errors.InvalidSessionTimeoutError,
    errors.MessageSizeTooLargeError,
    errors.PolicyViolationError,
    errors.SaslAuthenticationFailed,
    errors.TopicAuthorizationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.UnsupportedVersionError,
)


def said(error: BaseException) -> Unavailable:
    """Return what an error of the client means; none of them is for ever."""
    is_late = isinstance(error, (errors.RequestTimedOutError, errors.KafkaTimeoutError, TimeoutError))
    return Unavailable(text_of(error), timed_out=is_late, slowly=isinstance(error, _SLOW))


async def _ended(producer: Any) -> None:
    """End a producer with all it still holds. `stop` alone would wait until that is sent, be it for ever."""
    kafka_source.cut(producer.client)
    with contextlib.suppress(Exception):
        await producer._sender.close()
    producer._message_accumulator.fail_all(errors.ProducerClosed())
    with contextlib.suppress(Exception):
        await producer.stop()


class _Address(NamedTuple):
    scheme: str
    user: str | None
    password: str | None
    hosts: list[tuple[str, int] | None]  # None where it is none
    rest: str

    @classmethod
    def of(cls, url: str) -> _Address:
        parts = urlsplit(url)
        login, at, places = parts.netloc.rpartition("@")
        user, colon, password = login.partition(":")
        hosts = [_host_of(each) for each in places.split(",")] if places else []
        rest = parts.path.removeprefix("/") + parts.query + parts.fragment
        return cls(
            parts.scheme.lower(), unquote(user) if at else None, unquote(password) if colon else None, hosts, rest
        )


def _host_of(text: str) -> tuple[str, int] | None:
    found = _HOST.fullmatch(text)
    if found is None or not 0 < int(found[2] or _PORT) < 65536:
        return None
    return found[1], int(found[2] or _PORT)
