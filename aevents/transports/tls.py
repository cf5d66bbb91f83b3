"""The TLS of one service, its `CA` and `CERT`: files in, an `SSLContext` for new connections out.

Certificates are renewed on disk while the process runs: the files are looked at again every few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from aevents.errors import Unavailable
from aevents.threads import DaemonPool
from aevents.transports.base import Destination

_LOOK_EVERY_S = 2.0
_WAIT_S = 2.0  # for a look; a disk that hangs holds up nobody longer
_LOOKS = 4  # at once, as one that hangs keeps its thread
_Stamp = tuple[int, int, int]
_Load = Callable[[str, tuple[str, ...]], ssl.SSLContext]
_PLAIN = ("http", "tcp")  # schemes that have a twin with TLS
_logger = logging.getLogger("aevents")


def files_of(ca: Any, cert: Any) -> tuple[str, tuple[str, ...]]:
    """Return the paths in a service's `CA` and `CERT`; raises `ValueError` with what is wrong with them."""
    certs = list(cert) if isinstance(cert, (list, tuple)) else [] if cert in (None, "") else [cert]
    if not (ca is None or _is_path(ca)):
        raise ValueError(f"'CA' must be the path of a file, not a {type(ca).__name__}")
    if len(certs) > 2 or not all(map(_is_path, certs)) or "" in certs:
        raise ValueError(
            "'CERT' must be the path of a file, or a list of two: of the certificate and its key"
        )
    for key, path in (("CA", ca), *(("CERT", path) for path in certs)):
        if "-----BEGIN" in str(path):
            raise ValueError(f"{key!r} must be the path of a file, not what stands in it")
    return "" if ca is None else os.fspath(ca), tuple(map(os.fspath, certs))


def mistake_in(ca: Any, cert: Any, url: str = "") -> str | None:
    """Say what is wrong with a service's `CA` and `CERT`, also beside its `url`, or None. Reads the files."""
    try:
        files = files_of(ca, cert)
        if any(files):
            _look_at(*files)
            _load(*files)
    except ValueError as error:
        return str(error)
    return misplaced_at(url) if any(files) else None


def misplaced_at(url: str) -> str | None:
    """Say that certificates are of no use with `url`, or None."""
    scheme = url.partition(":")[0].lower()
    return f"'CA' and 'CERT' are for {scheme}s://, its URL is {scheme}://" if scheme in _PLAIN else None


def is_about_our_certificate(cause: BaseException | None) -> bool:
    """Tell whether the server said that it takes no client without a certificate, or not this one.

    With TLS 1.3 it says so after the handshake, when the request is on its way.
    """
    reason = (cause.reason or "") if isinstance(cause, ssl.SSLError) else ""
    return "ALERT" in reason and any(
        word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")
    )


class Contexts:
    """One context for each `CA` and `CERT`, used on one event loop. The files are read in threads.

    `load` makes one of the files; `where` says in which setting they stand.
    """

    def __init__(self, load: _Load | None = None, where: str = "SERVICES") -> None:
        self._load = load
        self._where = where
        self._threads = DaemonPool(_LOOKS, "aevents-tls")
        self._kept: dict[tuple[str, tuple[str, ...]], _Kept] = {}

    async def of(self, destination: Destination) -> ssl.SSLContext:
        """Return what the files say now, or said when they were last good; raises `Unavailable`."""
        files = destination.ca, destination.cert
        kept = self._kept.get(files)
        if kept is None:
            kept = self._kept[files] = _Kept(*files, self._load, self._where)
        now = time.monotonic()
        if now >= kept.looked_at + _LOOK_EVERY_S and (kept.look is None or kept.look.done()):
            kept.looked_at = now
            renew = functools.partial(kept.renew, destination.name)
            kept.look = asyncio.get_running_loop().run_in_executor(self._threads, renew)
        if kept.look is not None and not kept.look.done():
            await asyncio.wait([kept.look], timeout=max(0.0, kept.looked_at + _WAIT_S - now))
        if kept.context is None:
            mistake = kept.mistake or "the files of 'CA' and 'CERT' take too long to be read"
            raise Unavailable(f"AEVENTS[{self._where!r}][{destination.name!r}]: {mistake}", slowly=True)
        return kept.context

    def close(self) -> None:
        """End the threads; one that hangs is left to itself."""
        self._threads.shutdown(wait=False)


class _Kept:
    """The context of some files, what these were like when it was made, and the next look at them."""

    def __init__(
        self, ca: str, cert: tuple[str, ...], load: _Load | None = None, where: str = "SERVICES"
    ) -> None:
        self._files = ca, cert
        self._load = load or _load
        self._where = where
        self._stamps: list[_Stamp] = []
        self._seen: list[_Stamp] = []
        self.context: ssl.SSLContext | None = None
        self.mistake = ""
        self.look: asyncio.Future[None] | None = None
        self.looked_at = -math.inf

    def renew(self, name: str) -> None:
        """Load the files if they have changed. In a thread, one at a time; raises nothing."""
        try:
            stamps = _look_at(*self._files)  # before they are read, lest a change in between be missed
            # Whoever writes may not have finished: a new file is read when it is some seconds old, or twice
            # the same.
            is_settled = stamps == self._seen or max(stamps)[0] < time.time_ns() - _LOOK_EVERY_S * 1e9
            self._seen = stamps
            if self.context is None or (stamps != self._stamps and is_settled):
                self.context, self._stamps = self._load(*self._files), stamps
            mistake = ""
        except Exception as error:
            mistake = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} in a file"
        if mistake and self.context is not None and not self.mistake:
            _logger.warning(
                "AEVENTS[%r][%r]: %s. What it was before stays in use.",
                self._where,
                name,
                mistake,
                extra={"service": name},
            )
        self.mistake = mistake


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _look_at(ca: str, cert: tuple[str, ...]) -> list[_Stamp]:
    """Return what changes when one of the files does."""
    stamps = []
    for key, path in (("CA", ca), *(("CERT", path) for path in cert)):
        with _told_of(key):
            if path:
                found = os.stat(path)
                if not stat.S_ISREG(found.st_mode):  # a pipe would let its reader wait
                    raise ValueError("it is no file")
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
    return stamps


def _load(ca: str, cert: tuple[str, ...]) -> ssl.SSLContext:
    """Read the files; what they say holds in place of the system's, as far as they say it."""
    with _told_of("CA"):
        context = ssl.create_default_context(cafile=ca or None)
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate may vouch, on every Python
    context.set_alpn_protocols(["http/1.1"])
    _show(context, cert)
    return context


def load_of_client(ca: str, cert: tuple[str, ...]) -> ssl.SSLContext:
    """Return the context of a client that speaks no HTTP. Reads the files."""
    context = _load(ca, cert)
    context.set_alpn_protocols([])
    return context


def load_of_server(ca: str, cert: tuple[str, ...]) -> ssl.SSLContext:
    """Return the context of a server; with a `ca` it takes only clients that show a certificate of it."""
    with _told_of("CA"):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca or None)
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    if ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _show(context, cert)
    return context


def _show(context: ssl.SSLContext, cert: tuple[str, ...]) -> None:
    if cert:
        with _told_of("CERT"):
            context.load_cert_chain(cert[0], cert[-1], password=_ask_nobody)


def _ask_nobody() -> str:
    # Without this OpenSSL asks at the terminal and waits.
    raise ValueError("its key is encrypted: write it without a password, in a file that only this user reads")


@contextlib.contextmanager
def _told_of(key: str) -> Iterator[None]:
    """Turn whatever a file of `key` raises into a `ValueError` that shows nothing of it."""
    try:
        yield
    except ssl.SSLError as error:
        wanted = "certificate" if key == "CA" else "certificate with its key"
        reason = error.reason or "unreadable"
        raise ValueError(f"{key!r} cannot be used: no {wanted} can be loaded ({reason})") from None
    except OSError as error:
        raise ValueError(f"{key!r} cannot be used: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{key!r} cannot be used: {error}") from None
