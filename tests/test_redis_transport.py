"""The contract on a real Redis, and what this transport promises beyond it."""

from __future__ import annotations

import pytest

pytest.importorskip("redis", reason="needs redis-py, the extra aevents[redis]")

import redis.asyncio as client

from aevents.transports.base import Transport
from aevents.transports.contract_of_brokers import BrokerContract
from aevents.transports.redis import RedisTransport
from tests import brokers


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
