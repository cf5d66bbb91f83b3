"""A service's `CA` and `CERT`: real servers and certificates; what is trusted, shown and renewed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from aevents import emit, routes
from aevents.checks import check_settings
from aevents.errors import Unavailable
from aevents.transports import tls
from aevents.transports.base import Destination
from aevents.transports.http import HttpTransport
from tests.peers import Exchange, Fleet, Peer, answers, eventually
from tests.project.notes import database
from tests.servers import running
from tests.test_http_transport import message

#: What makes a server ask for certificates, in a folder with its own; the page on TLS shows the same.
OPTIONS = {
    "uvicorn": [
        "--ssl-certfile={folder}/server.crt",
        "--ssl-keyfile={folder}/server.key",
        "--ssl-ca-certs={folder}/ca.pem",
        "--ssl-cert-reqs=2",
    ],
    "gunicorn": [
        "--certfile={folder}/server.crt",
        "--keyfile={folder}/server.key",
        "--ca-certs={folder}/ca.pem",
        "--cert-reqs=2",
    ],
}
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other_ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def transport() -> AsyncIterator[HttpTransport]:
    transport = HttpTransport()
    yield transport
    await transport.close()


@pytest.fixture
def fleet(settings: Any) -> Iterator[Fleet]:
    with Fleet(settings) as fleet:
        yield fleet


@pytest.fixture
def _restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at all the time, and a change is believed at once."""
    monkeypatch.setattr(tls, "_LOOK_EVERY_S", 0.0)


def serving(
    ca: trustme.CA, *, host: str = "127.0.0.1", clients: trustme.CA | None = None, version: Any = None
) -> ssl.SSLContext:
    """A server's context; with `clients` it takes only those whose certificate this CA signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(host).configure_cert(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
    return context


def save(pem: trustme.Blob, path: Path) -> str:
    """Write as a careful program does: beside it, and then in its place."""
    beside = path.with_suffix(".new")
    pem.write_to_path(beside)
    beside.replace(path)
    return str(path)


def make_old(path: str) -> None:
    os.utime(path, (time.time() - 60, time.time() - 60))


async def send(transport: HttpTransport, url: str, ca: str = "", *cert: str) -> None:
    await transport.send(Destination("payments", url, ca=ca, cert=cert), message())


async def why_not(transport: HttpTransport, url: str, ca: str = "", *cert: str) -> Unavailable:
    with pytest.raises(Unavailable) as raised:
        await send(transport, url, ca, *cert)
    return raised.value


async def until(is_so: Callable[[], Any]) -> None:
    """Try for as long as it takes the files to be looked at."""
    ends = time.monotonic() + 15
    while not await is_so():
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)


# CA


@versions
async def test_the_own_ca_vouches(
    version: Any, ca: trustme.CA, transport: HttpTransport, tmp_path: Path
) -> None:
    with Peer(tls=serving(ca, version=version)) as peer:
        await send(transport, peer.url, save(ca.cert_pem, tmp_path / "ca.pem"))

        assert len(peer.requests) == 1


async def test_an_intermediate_alone_vouches_too(
    ca: trustme.CA, transport: HttpTransport, tmp_path: Path
) -> None:
    intermediate = ca.create_child_ca()
    with Peer(tls=serving(intermediate)) as peer:
        await send(transport, peer.url, save(intermediate.cert_pem, tmp_path / "ca.pem"))


async def test_a_ca_that_is_not_the_server_s_sends_nothing_and_heals_slowly(
    ca: trustme.CA, other_ca: trustme.CA, transport: HttpTransport, tmp_path: Path
) -> None:
    with Peer(tls=serving(ca)) as peer:
        error = await why_not(transport, peer.url, save(other_ca.cert_pem, tmp_path / "ca.pem"))

        assert error.slowly
        assert "certificate verify failed" in str(error)
        assert "SSLContext" not in str(error)
        assert peer.requests == []


async def test_the_own_ca_vouches_in_place_of_the_system_s(
    ca: trustme.CA,
    other_ca: trustme.CA,
    transport: HttpTransport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a server that the system trusts
    monkeypatch.setenv("SSL_CERT_FILE", save(ca.cert_pem, tmp_path / "system.pem"))
    client = save(ca.issue_cert("us@example").private_key_and_cert_chain_pem, tmp_path / "client.pem")
    with Peer(tls=serving(ca)) as peer:
        # Then so do we with a CERT alone, and not with a CA of another
        await send(transport, peer.url, "", client)
        await why_not(transport, peer.url, save(other_ca.cert_pem, tmp_path / "ca.pem"))

        assert len(peer.requests) == 1


async def test_a_certificate_for_another_host_is_refused(
    ca: trustme.CA, transport: HttpTransport, tmp_path: Path
) -> None:
    with Peer(tls=serving(ca, host="payments.internal")) as peer:
        error = await why_not(transport, peer.url, save(ca.cert_pem, tmp_path / "ca.pem"))

        assert error.slowly
        assert "IP address mismatch" in str(error)
        assert peer.requests == []


async def test_two_services_at_one_address_share_no_connection(
    ca: trustme.CA, other_ca: trustme.CA, transport: HttpTransport, tmp_path: Path
) -> None:
    with Peer(tls=serving(ca)) as peer:
        await send(transport, peer.url, save(ca.cert_pem, tmp_path / "ca.pem"))
        await why_not(transport, peer.url)
        await why_not(transport, peer.url, save(other_ca.cert_pem, tmp_path / "other.pem"))

        assert len(peer.requests) == 1


def test_tls_is_1_2_at_least_and_checks_host_and_certificate(ca: trustme.CA, tmp_path: Path) -> None:
    for path in ("", save(ca.cert_pem, tmp_path / "ca.pem")):
        context = tls._load(path, ())
        assert context.minimum_version >= TLS_1_2
        assert context.check_hostname
        assert context.verify_mode == ssl.CERT_REQUIRED


async def test_a_service_without_either_reads_no_file(
    transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tls.Contexts, "of")
    with Peer() as peer:
        await send(transport, peer.url)


# CERT


@versions
@pytest.mark.parametrize("files", [1, 2])
async def test_the_server_sees_our_certificate(
    version: Any, files: int, ca: trustme.CA, transport: HttpTransport, tmp_path: Path
) -> None:
    seen: list[Any] = []

    async def look(exchange: Exchange) -> None:
        seen.append(exchange.writer.get_extra_info("peercert")["subjectAltName"])
        await answers()(exchange)

    ours = ca.issue_cert("accounts@internal.example")
    if files == 1:
        cert = [save(ours.private_key_and_cert_chain_pem, tmp_path / "client.pem")]
    else:
        cert = [save(ours.cert_chain_pems[0], tmp_path / "client.crt")]
        cert.append(save(ours.private_key_pem, tmp_path / "client.key"))
    with Peer(look, tls=serving(ca, clients=ca, version=version)) as peer:
        await send(transport, peer.url, save(ca.cert_pem, tmp_path / "ca.pem"), *cert)

    assert seen == [(("email", "accounts@internal.example"),)]


@versions
@pytest.mark.parametrize("with_cert", [False, True])
async def test_without_a_certificate_that_the_server_takes_nothing_is_delivered(
    version: Any,
    with_cert: bool,
    ca: trustme.CA,
    other_ca: trustme.CA,
    transport: HttpTransport,
    tmp_path: Path,
) -> None:
    cert = [save(other_ca.issue_cert("x@example").private_key_and_cert_chain_pem, tmp_path / "client.pem")]
    with Peer(tls=serving(ca, clients=ca, version=version)) as peer:
        path = save(ca.cert_pem, tmp_path / "ca.pem")
        await why_not(transport, peer.url, path, *cert[: int(with_cert)])

        assert peer.requests == []


class Frank:
    """A server that tells in TLS why it takes no client, and gives it the time to hear that.

    Those on asyncio only hang up.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return f"https://127.0.0.1:{self._listener.getsockname()[1]}/events/"

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        accepted, _ = self._listener.accept()
        # In memory: the socket of an SSLSocket is closed at once, and what was not read takes the alert away.
        to_us, to_them = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = self._context.wrap_bio(to_us, to_them, server_side=True)
        with accepted:
            while data := accepted.recv(65536):
                to_us.write(data)
                try:
                    ours.do_handshake()
                except ssl.SSLWantReadError:
                    accepted.sendall(to_them.read())
                except ssl.SSLError:
                    break
            with contextlib.suppress(OSError):  # the client may not wait for the end
                accepted.sendall(to_them.read())
                accepted.shutdown(socket.SHUT_WR)
                while accepted.recv(65536):
                    pass


@versions
@pytest.mark.parametrize("with_cert", [False, True])
async def test_a_server_that_says_why_it_takes_no_client_heals_slowly(
    version: Any,
    with_cert: bool,
    ca: trustme.CA,
    other_ca: trustme.CA,
    transport: HttpTransport,
    tmp_path: Path,
) -> None:
    cert = [save(other_ca.issue_cert("x@example").private_key_and_cert_chain_pem, tmp_path / "client.pem")]
    path = save(ca.cert_pem, tmp_path / "ca.pem")
    with Frank(serving(ca, clients=ca, version=version)) as url:
        error = await why_not(transport, url, path, *cert[: int(with_cert)])

    assert error.slowly
    assert "ALERT" in str(error)


# Files that cannot be used


def encrypted(cert: trustme.LeafCert, form: Any) -> bytes:
    key = serialization.load_pem_private_key(cert.private_key_pem.bytes(), None)
    return key.private_bytes(
        serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"s3cret")
    )


Unusable = tuple[Any, Any, str]


@pytest.fixture(
    params=[
        "no CA",
        "no certificate in it",
        "a folder",
        "a pipe",
        "no key",
        "not its key",
        "encrypted",
        "old",
    ]
)
def unusable(request: pytest.FixtureRequest, ca: trustme.CA, tmp_path: Path) -> Unusable:
    """`CA`, `CERT` and what is said of them."""
    cert, other = ca.issue_cert("a@example"), ca.issue_cert("b@example")
    garbage, pipe = tmp_path / "garbage.pem", tmp_path / "pipe"
    garbage.write_text("s3cret")
    os.mkfifo(pipe)
    crt, key = tmp_path / "client.crt", tmp_path / "client.key"
    save(cert.cert_chain_pems[0], crt)
    save(other.private_key_pem, key)
    locked, old = tmp_path / "locked.key", tmp_path / "old.key"
    locked.write_bytes(encrypted(cert, serialization.PrivateFormat.PKCS8))
    old.write_bytes(encrypted(cert, serialization.PrivateFormat.TraditionalOpenSSL))
    found: dict[str, Unusable] = {
        "no CA": (str(tmp_path / "nowhere.pem"), "", "'CA' cannot be used: No such file"),
        "no certificate in it": (str(garbage), "", "'CA' cannot be used: no certificate"),
        "a folder": (str(tmp_path), "", "'CA' cannot be used: it is no file"),
        "a pipe": ("", str(pipe), "'CERT' cannot be used: it is no file"),
        "no key": ("", str(crt), "'CERT' cannot be used: no certificate with its key"),
        "not its key": ("", [str(crt), str(key)], "'CERT' cannot be used: no certificate with its key"),
        "encrypted": ("", [str(crt), str(locked)], "'CERT' cannot be used: its key is encrypted"),
        "old": ("", [str(crt), str(old)], "'CERT' cannot be used: its key is encrypted"),
    }
    return found[request.param]


async def test_files_that_cannot_be_used_send_nothing_and_heal_slowly(
    unusable: Unusable, ca: trustme.CA, transport: HttpTransport
) -> None:
    path, cert, says = unusable
    with Peer(tls=serving(ca)) as peer:
        error = await why_not(transport, peer.url, path, *tls.files_of(path, cert)[1])

        assert error.slowly
        assert str(error).startswith(f"AEVENTS['SERVICES']['payments']: {says}")
        assert "s3cret" not in str(error)
        assert peer.connections == 0


def test_e009_files_that_cannot_be_used(unusable: Unusable, settings: Any) -> None:
    path, cert, says = unusable
    assert (tls.mistake_in(path, cert) or "").startswith(says)
    (found,) = checked(settings, CA=path, CERT=cert)
    assert found.id == "aevents.E009"
    assert found.msg.startswith(f"AEVENTS['SERVICES']['payments']: {says}")
    assert found.hint


PEM = "-----BEGIN PRIVATE KEY-----\ns3cret"
WRONG = [
    {"CA": 5},
    {"CA": ["ca.pem"]},
    {"CA": b"ca.pem"},
    {"CA": PEM},
    {"CERT": 5},
    {"CERT": {"key": "client.key"}},
    {"CERT": ["a", "b", "c"]},
    {"CERT": ["a", ""]},
    {"CERT": ["a", None]},
    {"CERT": PEM},
    {"CERT": ["client.crt", PEM]},
]


@pytest.mark.parametrize("keys", WRONG)
def test_e009_values_of_the_wrong_kind(keys: dict[str, Any], settings: Any) -> None:
    (found,) = checked(settings, **keys)
    assert found.id == "aevents.E009"
    assert f"{next(iter(keys))!r} must be the path of a file" in found.msg
    assert "s3cret" not in f"{found.msg}{found.hint}"


@pytest.mark.parametrize("keys", [*WRONG, {"URL": "http://127.0.0.1:1/", "CA": "ca.pem"}])
def test_values_of_the_wrong_kind_keep_events_from_their_service_only(
    keys: dict[str, Any], fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer() as well:
        payments = {"URL": "https://127.0.0.1:1/", **keys}
        fleet(
            SERVICES={"payments": payments, "orders": well.url}, SUBSCRIPTIONS={"*": ["payments", "orders"]}
        )

        wrong, fine = emit("noted", {}).results

    assert (wrong.outcome, fine.outcome) == ("failed", "delivered")
    assert str(wrong.error).startswith("AEVENTS['SERVICES']['payments']: 'C")
    assert "s3cret" not in f"{wrong.error}{caplog.text}"


def test_e009_certificates_for_plain_http(settings: Any, ca: trustme.CA, tmp_path: Path) -> None:
    path = save(ca.cert_pem, tmp_path / "ca.pem")
    (found,) = checked(settings, URL="HTTP://127.0.0.1/", CA=path)
    assert found.id == "aevents.E009"
    assert "its URL is http://" in found.msg


def test_files_that_can_be_used_may_be_paths_and_nothing_is_nothing(
    settings: Any, ca: trustme.CA, tmp_path: Path
) -> None:
    cert = ca.issue_cert("us@example")
    save(ca.cert_pem, tmp_path / "ca.pem")
    save(cert.private_key_and_cert_chain_pem, tmp_path / "client.pem")
    save(cert.private_key_pem, tmp_path / "client.key")

    both = [tmp_path / "client.pem", str(tmp_path / "client.key")]
    assert checked(settings, CA=tmp_path / "ca.pem", CERT=both) == []
    found = routes.destination_named("payments")
    assert found is not None
    assert (found.ca, found.cert) == (str(tmp_path / "ca.pem"), tuple(map(str, both)))

    assert checked(settings, CA=str(tmp_path / "ca.pem"), CERT=str(tmp_path / "client.pem")) == []
    assert checked(settings, URL="http://127.0.0.1/", CA=None, CERT=None) == []
    assert checked(settings, URL="http://127.0.0.1/", CA="", CERT="") == []
    assert checked(settings, URL="http://127.0.0.1/", CERT=[]) == []


def checked(settings: Any, **keys: Any) -> list[Any]:
    service = {"URL": "https://payments.internal/events/", **keys}
    settings.AEVENTS = {"SERVICE": "tests", "UNSIGNED": "accept", "SERVICES": {"payments": service}}
    return check_settings()


# Renewal


@pytest.mark.usefixtures("_restless")
async def test_a_renewed_ca_is_used_without_a_restart(
    ca: trustme.CA, other_ca: trustme.CA, transport: HttpTransport, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    save(ca.cert_pem, path)
    with Peer(tls=serving(ca)) as before, Peer(tls=serving(other_ca)) as after:
        await send(transport, before.url, str(path))
        await why_not(transport, after.url, str(path))

        save(other_ca.cert_pem, path)

        async def is_trusted() -> bool:
            try:
                await send(transport, after.url, str(path))
            except Unavailable:
                return False
            return True

        await until(is_trusted)
        # And what was open under the old one is not used any more
        await why_not(transport, before.url, str(path))
        assert len(before.requests) == len(after.requests) == 1


@pytest.mark.usefixtures("_restless")
@pytest.mark.parametrize("files", [1, 2])
async def test_a_renewed_certificate_of_ours_is_shown_without_a_restart(
    files: int, ca: trustme.CA, transport: HttpTransport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    async def look(exchange: Exchange) -> None:
        seen.append(exchange.writer.get_extra_info("peercert")["subjectAltName"][0][1])
        await answers()(exchange)

    crt, key = tmp_path / "client.crt", tmp_path / "client.key"
    cert = [str(crt), str(key)][:files]

    def renew(name: str) -> None:
        ours = ca.issue_cert(name)
        save(ours.private_key_and_cert_chain_pem if files == 1 else ours.cert_chain_pems[0], crt)
        save(ours.private_key_pem, key)

    renew("old@example")
    path = save(ca.cert_pem, tmp_path / "ca.pem")
    with Peer(look, tls=serving(ca, clients=ca)) as peer:

        async def is_new() -> bool:
            await send(transport, peer.url, path, *cert)
            return seen[-1] == "new@example"

        assert not await is_new()
        renew("new@example")
        await until(is_new)


@pytest.mark.usefixtures("_restless")
@pytest.mark.parametrize("harm", ["half", "empty", "gone"])
async def test_a_file_that_is_half_written_or_gone_leaves_the_old_one_in_use_and_is_told_once(
    harm: str,
    ca: trustme.CA,
    other_ca: trustme.CA,
    transport: HttpTransport,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "ca.pem"
    save(ca.cert_pem, path)
    with Peer(tls=serving(ca)) as before, Peer(tls=serving(other_ca)) as after:
        await send(transport, before.url, str(path))

        # When whoever renews it is stopped half-way
        whole = other_ca.cert_pem.bytes()
        path.unlink() if harm == "gone" else path.write_bytes(
            whole[: len(whole) // 2 if harm == "half" else 0]
        )

        async def is_told() -> bool:
            await send(transport, before.url, str(path))
            return bool(caplog.records)

        await until(is_told)
        for _ in range(5):
            await send(transport, before.url, str(path))

        # Then one line tells it
        (record,) = caplog.records
        assert (record.levelno, record.name) == (logging.WARNING, "aevents")
        assert record.message.startswith("AEVENTS['SERVICES']['payments']: 'CA' cannot be used: ")

        # And when it is whole at last it is used
        path.write_bytes(whole)

        async def is_trusted() -> bool:
            try:
                await send(transport, after.url, str(path))
            except Unavailable:
                return False
            return True

        await until(is_trusted)
        assert len(caplog.records) == 1


async def test_a_change_is_believed_when_it_was_not_just_now(
    ca: trustme.CA, other_ca: trustme.CA, tmp_path: Path
) -> None:
    path = save(ca.cert_pem, tmp_path / "ca.pem")
    kept = tls._Kept(path, ())
    kept.renew("payments")
    first = kept.context
    assert first is not None

    kept.renew("payments")
    assert kept.context is first  # nothing has changed

    save(other_ca.cert_pem, tmp_path / "ca.pem")
    kept.renew("payments")
    assert kept.context is first  # it may still be written
    kept.renew("payments")
    second = kept.context
    assert second not in (None, first)

    # Where events are few the first look has to do
    save(ca.cert_pem, tmp_path / "ca.pem")
    make_old(path)
    kept.renew("payments")
    assert kept.context not in (None, first, second)


async def test_files_are_looked_at_every_few_seconds_and_not_for_each_event(
    ca: trustme.CA, transport: HttpTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_LOOK_EVERY_S", 600.0)
    looks: list[Any] = []
    look_at = tls._look_at
    monkeypatch.setattr(tls, "_look_at", lambda *files: looks.append(files) or look_at(*files))
    path = save(ca.cert_pem, tmp_path / "ca.pem")
    with Peer(tls=serving(ca)) as peer:
        await asyncio.gather(*(send(transport, peer.url, path) for _ in range(20)))
        await send(transport, peer.url, path)

    assert looks == [(path, ())]


async def test_a_disk_that_hangs_holds_up_neither_the_loop_nor_those_with_a_context(
    ca: trustme.CA, transport: HttpTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_LOOK_EVERY_S", 0.0)
    path = save(ca.cert_pem, tmp_path / "ca.pem")
    hanging, ended, look_at = threading.Event(), threading.Event(), tls._look_at

    def hangs(*files: Any) -> Any:
        hanging.set()
        ended.wait(60)
        return look_at(*files)

    with Peer(tls=serving(ca)) as peer:
        await send(transport, peer.url, path)
        monkeypatch.setattr(tls, "_look_at", hangs)
        monkeypatch.setattr(tls, "_WAIT_S", 0.05)
        try:
            await send(transport, peer.url, path)
            assert hanging.is_set()
            error = await why_not(transport, peer.url, str(tmp_path / "other.pem"))
            assert error.slowly
            assert "take too long" in str(error)
            assert len(peer.requests) == 2
        finally:
            ended.set()


# From emit to the rows of a real server


@pytest.mark.processes
@pytest.mark.parametrize("server", OPTIONS)
def test_events_reach_a_server_that_asks_for_certificates_and_no_others_do(
    server: str, ca: trustme.CA, other_ca: trustme.CA, fleet: Fleet, tmp_path: Path
) -> None:
    ours, strange = ca.issue_cert("accounts@example"), other_ca.issue_cert("stranger@example")
    theirs = ca.issue_cert("127.0.0.1")
    path = save(ca.cert_pem, tmp_path / "ca.pem")
    cert = save(ours.private_key_and_cert_chain_pem, tmp_path / "client.pem")
    save(theirs.cert_chain_pems[0], tmp_path / "server.crt")
    save(theirs.private_key_pem, tmp_path / "server.key")
    notes = database.make(tmp_path / "notes.sqlite3")
    asking = ssl.create_default_context(cafile=path)
    asking.load_cert_chain(cert)
    with running(
        server,
        settings="tests.project.settings_notes",
        env={"NOTES_DB": str(notes)},
        options=[option.format(folder=tmp_path) for option in OPTIONS[server]],
        tls=asking,
    ) as url:
        service = {"URL": url + "events/", "CA": path}
        stranger = save(strange.private_key_and_cert_chain_pem, tmp_path / "strange.pem")
        fleet(
            SERVICES={
                "good": {**service, "CERT": cert},
                "nobody": service,
                "stranger": {**service, "CERT": stranger},
                "mistrusting": {"URL": service["URL"], "CERT": cert},
            },
            SUBSCRIPTIONS={"noted-sync": ["good", "nobody", "stranger", "mistrusting"]},
        )
        good, *others = emit("noted-sync", {"n": 1}).results
        assert good.outcome == "delivered", good
        assert [result.outcome for result in others] == ["failed"] * 3
        eventually(lambda: database.texts(notes) == ["sync 1"])
