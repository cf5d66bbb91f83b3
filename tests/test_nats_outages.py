"""NATS that is killed, hangs, loses its data or lets nobody in: what becomes of who sends and who listens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("nats", reason="needs nats-py, the extra aevents[nats]")

import trustme

from aevents import wire
from aevents.answer import Answer, Receipt
from aevents.errors import Unavailable
from aevents.transports.base import Brought, Destination, Transport, Wanted
from aevents.transports.nats import NatsTransport
from aevents.transports.rehearsal import Mailbox, an_event, outcome, rehearse, some_events
from tests import brokers
from tests.own_nats import OwnNats, version_of

TYPES = ("order-placed", "sized", "many")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[OwnNats]:
    found = OwnNats(tmp_path / "nats")
    yield found
    if found.process is not None:
        found.process.send_signal(signal.SIGCONT)
    found.kill()


def transport_to(_: object = None) -> Transport:
    return NatsTransport(ACK_WAIT_S=2.0)


def destination_of(broker: OwnNats) -> Destination:
    return Destination("bus", broker.url)


@asynccontextmanager
async def listening(
    transport: Transport, destination: Destination, mailbox: Mailbox
) -> AsyncIterator[list[str]]:
    """Listen, and begin anew whenever the broker is lost, as the worker does; yield why that was."""

    async def take(brought: Sequence[Brought]) -> Sequence[Answer]:
        return [await mailbox(each.message) for each in brought]

    async def listen() -> None:
        while True:
            try:
                await transport.listen(destination, Wanted("orders", TYPES), take)
            except Unavailable as error:
                lost.append(str(error))
                await asyncio.sleep(0.1)

    lost: list[str] = []
    task = asyncio.create_task(listen())
    try:
        yield lost
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def sent(transport: Transport, destination: Destination, event_type: str = "order-placed") -> str:
    """Send an event until the broker has it; return its id."""
    message = an_event(event_type)
    while not isinstance(await outcome(transport.send(destination, message)), Receipt):  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    return message.headers["webhook-id"]


def ids_of(mailbox: Mailbox) -> set[str]:
    return {message.headers["webhook-id"] for message in mailbox.messages}


async def until(is_so: Callable[[], object]) -> None:
    while not is_so():  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(0.02)


# Killed


@pytest.mark.parametrize("is_safe", [False, True])
def test_a_broker_that_is_killed_and_comes_back_has_lost_nothing_and_is_used_again(
    broker: OwnNats, is_safe: bool
) -> None:
    broker.is_safe = is_safe
    broker.start()

    async def scenario(transport: Transport) -> None:
        destination, mailbox, confirmed = destination_of(broker), Mailbox(), set[str]()

        async def send_on() -> None:
            for _ in range(40):
                events = some_events(25)
                while events:
                    found = await outcome(transport.send_batch(destination, events))
                    outcomes = [found] * len(events) if isinstance(found, Exception) else found
                    assert all(isinstance(each, (Receipt, Unavailable)) for each in outcomes)
                    pairs = list(zip(events, outcomes, strict=True))
                    confirmed.update(event.id for event, each in pairs if isinstance(each, Receipt))
                    events = [event for event, each in pairs if not isinstance(each, Receipt)]
                    if events:
                        await asyncio.sleep(0.1)

        async with listening(transport, destination, mailbox) as lost:
            sending = asyncio.create_task(send_on())
            for _ in range(2):
                count = len(mailbox.messages)
                await until(lambda count=count: len(mailbox.messages) > count + 100)
                await asyncio.to_thread(broker.kill)
                await asyncio.to_thread(broker.start)
            await sending
            assert len(confirmed) == 1000
            await until(lambda: ids_of(mailbox) >= confirmed)
            assert len(lost) >= 2

    assert rehearse(transport_to, scenario, CONNECT_S=2.0, ATTEMPT_S=5.0) == []


def test_a_broker_that_is_gone_is_unavailable_and_said_to_be_without_its_password(broker: OwnNats) -> None:
    broker.start()

    async def scenario(transport: Transport) -> None:
        destination = Destination("bus", f"nats://someone:s3cret@127.0.0.1:{broker.port}")
        async with listening(transport, destination, Mailbox()) as lost:
            await sent(transport, destination)
            await asyncio.to_thread(broker.kill)
            began = time.monotonic()
            found = await outcome(transport.send(destination, an_event()))
            assert isinstance(found, Unavailable)
            await until(lambda: lost)
            assert time.monotonic() - began < 5
        assert "s3cret" not in f"{found}{lost}"

    assert rehearse(transport_to, scenario) == []


def test_a_broker_that_comes_back_without_its_data_is_given_all_that_has_to_be_there(broker: OwnNats) -> None:
    broker.start()

    async def scenario(transport: Transport) -> None:
        destination, mailbox = destination_of(broker), Mailbox()
        async with listening(transport, destination, mailbox) as lost:
            await sent(transport, destination)
            await mailbox.wait_for(1)
            await asyncio.to_thread(broker.kill)
            await until(lambda: lost)
            broker.forget()
            await asyncio.to_thread(broker.start)
            last = await sent(transport, destination)
            await until(lambda: last in ids_of(mailbox))

    assert rehearse(transport_to, scenario) == []


# It hangs


def test_a_broker_that_hangs_is_given_up_and_used_again_when_it_goes_on(broker: OwnNats) -> None:
    broker.start()
    assert broker.process is not None
    process = broker.process

    async def scenario(transport: Transport) -> None:
        destination, mailbox = destination_of(broker), Mailbox()
        async with listening(transport, destination, mailbox) as lost:
            await sent(transport, destination)
            await mailbox.wait_for(1)
            process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            # More than the sockets between us hold.
            data = b'"%b"' % (b"x" * 200_000)
            large = [transport.send(destination, an_event("sized", data)) for _ in range(100)]
            found = await asyncio.gather(*map(outcome, large))
            assert all(isinstance(each, Unavailable) for each in found)
            assert time.monotonic() - began < 4
            await until(lambda: lost)
            assert time.monotonic() - began < 15
            process.send_signal(signal.SIGCONT)
            last = await sent(transport, destination)
            await until(lambda: last in ids_of(mailbox))

    assert rehearse(transport_to, scenario, CONNECT_S=1.0, ATTEMPT_S=2.0) == []


def test_a_send_that_is_cancelled_while_the_broker_hangs_ends(broker: OwnNats) -> None:
    broker.start()
    assert broker.process is not None
    process = broker.process

    async def main() -> None:
        transport, destination = transport_to(), destination_of(broker)
        await sent(transport, destination)
        process.send_signal(signal.SIGSTOP)
        # More than the sockets hold, so that some of them wait for these: nats-py keeps the cancellation of
        # such a wait to itself. On uvloop, as asyncio's own in Python 3.13.0 takes whatever it is given.
        events = [an_event("sized", b'"%b"' % (b"x" * 900_000)) for _ in range(80)]
        sending = [asyncio.ensure_future(transport.send(destination, each)) for each in events]
        await asyncio.sleep(0.5)
        for each in sending:
            each.cancel()
        async with asyncio.timeout(2):
            found = await asyncio.gather(*sending, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in found)
        process.send_signal(signal.SIGCONT)
        await sent(transport, destination)
        await transport.close()

    pytest.importorskip("uvloop").run(main())


# It lets nobody in


def test_credentials_are_what_stands_in_the_url_percent_decoded(broker: OwnNats) -> None:
    broker.more = 'authorization { users: [ { user: "an@user", password: "p/w:d" } ] }'
    broker.start()

    async def scenario(transport: Transport) -> None:
        good = Destination("bus", f"nats://an%40user:p%2Fw%3Ad@127.0.0.1:{broker.port}")
        assert await transport.send(good, an_event()) == Receipt()
        bad = Destination("other", f"nats://an%40user:s3cret@127.0.0.1:{broker.port}")
        found = await outcome(transport.send(bad, an_event()))
        assert isinstance(found, Unavailable)
        assert found.slowly
        assert "s3cret" not in str(found)

    assert rehearse(transport_to, scenario) == []


def test_a_token_is_a_user_without_a_password(broker: OwnNats) -> None:
    broker.more = 'authorization { token: "s3cret" }'
    broker.start()

    async def scenario(transport: Transport) -> None:
        destination = Destination("bus", f"nats://s3cret@127.0.0.1:{broker.port}")
        assert await transport.send(destination, an_event()) == Receipt()

    assert rehearse(transport_to, scenario) == []


def test_what_is_not_permitted_is_said_soon_and_holds_up_no_other(broker: OwnNats) -> None:
    broker.more = """authorization { users: [
        { user: admin, password: a },
        { user: shop, password: b,
          permissions: { publish: { deny: ["aevents.secret", "$JS.API.CONSUMER.>"] } } },
    ] }"""
    broker.start()

    async def scenario(transport: Transport) -> None:
        destination = Destination("bus", f"nats://shop:b@127.0.0.1:{broker.port}")
        await sent(transport, destination)
        events = [*some_events(3), *some_events(1, "secret"), *some_events(3)]
        began = time.monotonic()
        found = await transport.send_batch(destination, events)
        assert found[:3] == found[4:] == [Receipt()] * 3
        assert isinstance(found[3], Unavailable)
        assert found[3].slowly
        assert "permissions violation" in str(found[3])
        assert await transport.send(destination, an_event()) == Receipt()
        async with listening(transport, destination, Mailbox()) as lost:
            await until(lambda: lost)
        assert "permissions violation" in lost[0]
        assert time.monotonic() - began < 8

    assert rehearse(transport_to, scenario) == []


def test_a_nats_without_jetstream_is_unavailable_and_said_to_be_so(broker: OwnNats) -> None:
    broker.has_jetstream = False
    broker.start()

    async def scenario(transport: Transport) -> None:
        found = await outcome(transport.send(destination_of(broker), an_event()))
        assert isinstance(found, Unavailable)
        assert "JetStream is not enabled" in str(found)

    assert rehearse(transport_to, scenario) == []


def test_the_first_of_several_servers_that_is_there_is_used(broker: OwnNats) -> None:
    broker.start()

    async def scenario(transport: Transport) -> None:
        url = f"nats://127.0.0.1:{brokers.free_port()},127.0.0.1:{broker.port}"
        for _ in range(3):
            assert await transport.send(Destination("bus", url), an_event()) == Receipt()

    assert rehearse(transport_to, scenario) == []


# TLS


@pytest.fixture
def encrypted(broker: OwnNats, tmp_path: Path) -> tuple[OwnNats, Destination]:
    """A broker that wants TLS and a client's certificate, and how to get in."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("server", "client"):
        ca.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(
            tmp_path / f"{name}.pem"
        )
    own = f'cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.pem"'
    broker.more = f'tls {{ {own}, ca_file: "{tmp_path}/ca.pem", verify: true }}'
    broker.start()
    cert = (str(tmp_path / "client.pem"),)
    url = f"natss://127.0.0.1:{broker.port}"
    return broker, Destination("bus", url, ca=str(tmp_path / "ca.pem"), cert=cert)


def test_natss_is_tls_with_the_certificates_of_the_settings(encrypted: tuple[OwnNats, Destination]) -> None:
    _, destination = encrypted

    async def scenario(transport: Transport) -> None:
        mailbox = Mailbox()
        async with listening(transport, destination, mailbox) as lost:
            assert await transport.send(destination, an_event()) == Receipt()
            assert wire.decode((await mailbox.wait_for(1))[0]).type == "order-placed"
        assert not lost

    assert rehearse(transport_to, scenario) == []


def test_it_runs_on_uvloop_too(encrypted: tuple[OwnNats, Destination]) -> None:
    broker, destination = encrypted

    async def main() -> None:
        transport, mailbox = transport_to(), Mailbox()
        async with asyncio.timeout(20):
            async with listening(transport, destination, mailbox) as lost:
                await sent(transport, destination)
                await mailbox.wait_for(1)
                await asyncio.to_thread(broker.kill)
                await until(lambda: lost)
                await asyncio.to_thread(broker.start)
                last = await sent(transport, destination)
                await until(lambda: last in ids_of(mailbox))
            await transport.close()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    pytest.importorskip("uvloop").run(main())


def test_a_certificate_that_nobody_we_know_vouches_for_is_unavailable(
    encrypted: tuple[OwnNats, Destination],
) -> None:
    _, destination = encrypted

    async def scenario(transport: Transport) -> None:
        found = await outcome(transport.send(Destination("bus", destination.url), an_event()))
        assert isinstance(found, Unavailable)
        assert isinstance(found.__cause__, ssl.SSLError)

    assert rehearse(transport_to, scenario) == []


def test_natss_sends_no_password_to_a_server_that_speaks_in_the_clear() -> None:
    async def scenario(transport: Transport) -> None:
        heard = b""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal heard
            writer.write(b'INFO {"version":"2.9.10","headers":true,"max_payload":1048576}\r\n')
            with contextlib.suppress(ConnectionError):
                heard += await reader.read()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            destination = Destination("bus", f"natss://user:s3cret@127.0.0.1:{port}")
            found = await outcome(transport.send(destination, an_event()))
        assert isinstance(found, Unavailable)
        assert "secure connection not available" in str(found)
        assert heard == b""

    assert rehearse(transport_to, scenario) == []


def test_what_is_written_is_on_the_disk_before_it_is_confirmed_where_that_is_asked_for(
    broker: OwnNats,
) -> None:
    broker.start()
    config = (broker.folder / "nats.conf").read_text()
    assert os.path.isdir(broker.folder / "data")
    assert ("sync_interval: always" in config) is (version_of(broker.server) >= (2, 10))
