"""nats-py's client, mended where a service cannot live with it. Its private parts are used here alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import nats.errors as errors
from nats.aio import client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.protocol.command import hpub_cmd


class Client(client.Client):
    """nats-py's client, where it may neither send in the clear nor wait for a server that is gone."""

    must_be_encrypted = False

    def _connect_command(self) -> bytes:
        # It encrypts where the server asks for it. What the server, or somebody in between, says is no
        # reason to send a password in the clear.
        if self.must_be_encrypted and not self._server_info.get("tls_required"):
            raise errors.SecureConnWantedError
        command: bytes = super()._connect_command()
        return command

    async def _send_publish(
        self,
        subject: str,
        reply: str,
        payload: bytes,
        payload_size: int,
        headers: dict[str, str] | None,
    ) -> None:
        # Its own way looks at each header three times, which costs more than all the rest of a message.
        if not headers:
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if not lines.count("\r") == lines.count("\n") == len(headers):
            raise errors.BadHeaderError("a line break")
        await self._go(hpub_cmd(subject, reply, f"NATS/1.0\r\n{lines}\r\n".encode(), payload))

    async def publish_to_each(self, subjects: Sequence[str], payload: bytes) -> None:
        """Publish the same at each of these subjects. They are not looked at: the server has named them."""
        said = b" %d\r\n%b\r\n" % (len(payload), payload)
        await self._go(b"".join([b"PUB %b%b" % (each.encode(), said) for each in subjects]))

    async def _go(self, command: bytes) -> None:
        await self._send_command(command)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Tell the server alone; what has come already is still given to who subscribed."""
        await self._send_unsubscribe(subscription._id)

    async def drop(self) -> None:
        """End it at once. `close` first writes what is pending, and waits until somebody has read it."""
        self._status = client.Client.CLOSED
        self._pending, self._pending_data_size = [], 0
        found = [self._reading_task, self._ping_interval_task, self._flusher_task]
        found += [each._wait_for_msgs_task for each in self._subs.values()]
        tasks: list[asyncio.Task[Any]] = [each for each in found if each is not None]
        for each in tasks:
            each.cancel()
        writer = getattr(cast(TcpTransport, self._transport), "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the socket is closed now; the writer would hang after half a handshake
