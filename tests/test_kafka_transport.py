"""The contract on a broker of Kafka's protocol, and what this transport promises beyond it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("aiokafka", reason="needs aiokafka, the extra aevents[kafka]")

from aevents.transports.base import Transport
from aevents.transports.contract_of_brokers import BrokerContract
from aevents.transports.kafka import KafkaTransport
from tests.own_kafka import OwnKafka


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnKafka]:
    broker = OwnKafka(tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker
    broker.kill()


class TestKafka(BrokerContract):
    good_urls = (
        "kafka://h",
        "kafka://u:p%40@h:9092,h2:9093,h3",
        "kafkas://h/",
        "kafka://[::1]:9092,127.0.0.1:1",
    )
    bad_urls = (
        "kafka://user:s3cret@[",
        "kafka://",
        "amqp://h",
        "kafka://u:s3cret@h:x",
        "kafka://h,,g",
        "kafka://h/topic",
        "kafka://h:70000",
    )
    keeps_order = True
    can_replay = True
    has_wildcards = True
    shares_unevenly = True
    takes_over_within_s = 10.0
    outlasts_s = 7.0  # a broker allows no session shorter than 6 s

    @pytest.fixture(autouse=True)
    def _broker(self, kafka: OwnKafka) -> None:
        self.url = kafka.url

    def make_transport(self) -> Transport:
        return KafkaTransport(PREFIX=self.prefix, SESSION_S=6.0, METADATA_S=1.0)
