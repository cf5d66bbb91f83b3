"""The contract on a real Redis, and what this transport promises beyond it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("redis", reason="needs redis-py, the extra aevents[redis]")

import redis.asyncio as client

from aevents.answer import Receipt
from aevents.errors import Unavailable
from aevents.transports.base import Destination, Transport
from aevents.transports.contract_of_brokers import BrokerContract
from aevents.transports.redis import RedisTransport
from aevents.transports.rehearsal import an_event, outcome, rehearse
from tests import brokers
from tests.own_redis import OwnRedis


class TestRedis(BrokerContract):
    good_urls = ("redis://h", "redis://u:p@h:6379/0", "rediss://h/3", "redis://[::1]:6379")
    bad_urls = ("redis://user:s3cret@[", "redis://", "amqp://h", "redis://h/a", "redis://u:s3cret@h:x/0")
    can_replay = True
    has_wildcards = True
    takes_over_within_s = 5.0

    @property
    def url(self) -> str:  # type: ignore[override]
        return brokers.address("redis")

    def make_transport(self) -> Transport:
        return RedisTransport(PREFIX=self.prefix, IDLE_S=2.0)

    async def clean_up(self) -> None:
        async with client.Redis.from_url(self.url) as redis:
            async for key in redis.scan_iter(match=f"*{self.prefix}*"):
                await redis.delete(key)


def test_a_server_that_was_demoted_is_left_as_another_may_stand_behind_its_name(tmp_path: Path) -> None:
    own = OwnRedis(tmp_path / "redis")
    own.start()

    async def scenario(transport: Transport) -> None:
        bus = Destination("bus", own.url)
        async with client.Redis.from_url(own.url) as admin:
            assert await transport.send(bus, an_event()) == Receipt()
            before = {each["id"] for each in await admin.client_list()}
            await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            error = await outcome(transport.send(bus, an_event()))
            assert isinstance(error, Unavailable)
            assert "replica" in str(error)
            await admin.execute_command("REPLICAOF", "NO", "ONE")
            assert await transport.send(bus, an_event()) == Receipt()
            after = {each["id"] for each in await admin.client_list()}
        assert len(before - after) == 1

    try:
        assert rehearse(RedisTransport, scenario) == []
    finally:
        own.kill()
