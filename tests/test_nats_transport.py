"""The contract on a real NATS with JetStream, and what this transport promises beyond it."""

from __future__ import annotations

import contextlib

import pytest

pytest.importorskip("nats", reason="needs nats-py, the extra aevents[nats]")

import nats as client
from nats.errors import BadHeaderError
from nats.js.errors import NotFoundError

from aevents.errors import Refused
from aevents.transports.base import Destination, Transport
from aevents.transports.contract_of_brokers import BrokerContract
from aevents.transports.nats import NatsTransport
from aevents.transports.nats_connection import Connection
from aevents.transports.rehearsal import an_event, outcome, rehearse
from tests import brokers


class TestNats(BrokerContract):
    good_urls = (
        "nats://h",
        "nats://u:p@h:4222",
        "nats://token@h/",
        "natss://a:4222,b:4222,c",
        "NATS://[::1]:4222",
    )
    bad_urls = (
        "nats://user:s3cret@[",
        "nats://",
        "nats://u:s3cret@",
        "amqp://h",
        "nats://h/a",
        "nats://u:s3cret@h:x",
        "nats://u:s3/cret@h",
        "nats://a,,b",
        "nats://h?tls=1",
    )
    drops_duplicates = True
    can_replay = True
    has_wildcards = True
    takes_over_within_s = 5.0

    @property
    def url(self) -> str:  # type: ignore[override]
        return brokers.address("nats")

    def make_transport(self) -> Transport:
        return NatsTransport(PREFIX=self.prefix, ACK_WAIT_S=2.0)

    async def clean_up(self) -> None:
        async with await client.connect(self.url) as found:
            for prefix in (self.prefix, f"u{self.prefix}"):
                with contextlib.suppress(NotFoundError):
                    await found.jetstream().delete_stream(prefix.removesuffix("."))


def test_an_empty_prefix_is_refused_as_it_names_the_stream() -> None:
    async def scenario(transport: Transport) -> None:
        found = await outcome(transport.send(Destination("bus", "nats://127.0.0.1:9"), an_event()))
        assert isinstance(found, Refused)
        assert "PREFIX" in str(found)

    assert rehearse(lambda: NatsTransport(PREFIX=""), scenario) == []


@pytest.mark.parametrize("break_", ["\r\n", "\n", "\r"])
async def test_a_header_that_would_begin_another_is_not_sent(break_: str) -> None:
    connection = await Connection.open(Destination("bus", brokers.address("nats")), None)
    try:
        with pytest.raises(BadHeaderError):
            await connection.send("nobody", b"x", headers={"ce-key": f"a{break_}Nats-Msg-Id: b"})
    finally:
        await connection.drop()
