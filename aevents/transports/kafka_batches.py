"""What goes to each of Kafka's partitions: messages in, batches out; what nobody leads is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.partitioner import DefaultPartitioner

from aevents.errors import DeliveryError, Unavailable
from aevents.transports.bindings import plain
from aevents.transports.broker import Outgoing

ATTRIBUTES = "ce_"
#: Of one partition's messages at a time; no broker's limit is below it.
BATCH_BYTES = 64 * 1024
_PARTITIONER = DefaultPartitioner()


@dataclass(slots=True, eq=False)
class Batch:
    """What one partition is sent at once; `places` are those of its messages among all of them."""

    builder: Any
    topic: str
    partition: int
    places: list[int]

    def takes(self, place: int, message: Outgoing, key: bytes | None) -> bool:
        """Add the message, unless it is full; a message of any size is taken by one that is empty."""
        headers = [
            (name, text.encode("utf-8", "surrogatepass"))
            for name, text in plain(message.headers, ATTRIBUTES).items()
        ]
        added = self.builder.append(timestamp=None, key=key, value=message.body, headers=headers)
        if added is None:
            return False
        self.places.append(place)
        return True


def batches_of(
    producer: Any, messages: Sequence[Outgoing], refused: Sequence[DeliveryError | None]
) -> list[Batch]:
    """Return the messages in batches: those of a key in its partition, others in any, a batch together.

    Built here, as the client's own way costs each message as much as all the rest of its delivery.
    """
    found: list[Batch] = []
    filling: dict[tuple[str, int | None], Batch] = {}
    for place, message in enumerate(messages):
        if refused[place] is not None:
            continue
        topic, key, partition = message.topic, None, None
        if message.key is not None:
            key = _bytes(message.key)
            partition = _partition(producer.client.cluster, topic, key)
        batch = filling.get((topic, partition))
        if batch is not None and batch.takes(place, message, key):
            continue
        chosen = _partition(producer.client.cluster, topic, None) if partition is None else partition
        batch = filling[topic, partition] = Batch(producer.create_batch(), topic, chosen, [])
        found.append(batch)
        if not batch.takes(place, message, key):  # what is in none would seem to be confirmed
            raise Unavailable("the client takes the message into no batch, not even an empty one")
    return found


def _partition(cluster: Any, topic: str, key: bytes | None) -> int:
    """Return the partition of a key, as Kafka's own clients do; without one, any that somebody leads."""
    every, led = cluster.partitions_for_topic(topic), cluster.available_partitions_for_topic(topic)
    found: int = _PARTITIONER(key, sorted(every), sorted(led))
    return found


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


async def without_a_leader(client: Any, messages: Sequence[Outgoing]) -> list[DeliveryError | None]:
    """Return an error for each whose partition nobody leads now: it would hold up what goes beside it."""
    found = _leaderless(client.cluster, messages)
    if any(found):
        await client.force_metadata_update()
        found = _leaderless(client.cluster, messages)
    return found


def _leaderless(cluster: Any, messages: Sequence[Outgoing]) -> list[DeliveryError | None]:
    found: list[DeliveryError | None] = [None] * len(messages)
    for topic in {message.topic for message in messages}:
        every = cluster.partitions_for_topic(topic) or set()
        led = cluster.available_partitions_for_topic(topic) or set()
        if every and len(led) == len(every):  # the rule
            continue
        for place, message in enumerate(messages):
            if message.topic == topic and not (
                led
                if message.key is None or not led
                else _partition(cluster, topic, _bytes(message.key)) in led
            ):
                found[place] = Unavailable(f"nobody leads the partition of {topic} now")
    return found
