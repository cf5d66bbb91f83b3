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
from collections.abc import Iterator
from typing import Any

from aevents.errors import Unavailable
from aevents.threads import DaemonPool
from aevents.transports.base import Destination

_LOOK_EVERY_S = 2.0
_WAIT_S = 2.0  # for a look; a disk that hangs holds up nobody longer
_LOOKS = 4  # at once, as one that hangs keeps its thread
_Stamp = tuple[int, int, int]
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
    return "'CA' and 'CERT' are for https://, its URL is http://" if url.lower().startswith("http:") else None


class Contexts:
    """One context for each `CA` and `CERT`, used on one event loop. The files are read in threads."""

    def __init__(self) -> None:
        self._threads = DaemonPool(_LOOKS, "aevents-tls")
        self._kept: dict[tuple[str, tuple[str, ...]], _Kept] = {}

    async def of(self, destination: Destination) -> ssl.SSLContext:
        """Return what the files say now, or said when they were last good; raises `Unavailable`."""
        files = destination.ca, destination.cert
        kept = self._kept.get(files)
        if kept is None:
            kept = self._kept[files] = _Kept(*files)
        now = time.monotonic()
        if now >= kept.looked_at + _LOOK_EVERY_S and (kept.look is None or kept.look.done()):
            kept.looked_at = now
            renew = functools.partial(kept.renew, destination.name)
            kept.look = asyncio.get_running_loop().run_in_executor(self._threads, renew)
        if kept.look is not None and not kept.look.done():
            await asyncio.wait([kept.look], timeout=max(0.0, kept.looked_at + _WAIT_S - now))
        if kept.context is None:
            mistake = kept.mistake or "the files of 'CA' and 'CERT' take too long to be read"
            raise Unavailable(f"AEVENTS['SERVICES'][{destination.name!r}]: {mistake}", slowly=True)
        return kept.context

    def close(self) -> None:
        """End the threads; one that hangs is left to itself."""
        self._threads.shutdown(wait=False)


class _Kept:
    """The context of some files, what these were like when it was made, and the next look at them."""

    def __init__(self, ca: str, cert: tuple[str, ...]) -> None:
        self._files = ca, cert
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
            if stamps != self._stamps and (self.context is None or is_settled):
                self.context, self._stamps = _load(*self._files), stamps
            mistake = ""
        except Exception as error:
            mistake = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} in a file"
        if mistake and self.context is not None and not self.mistake:
            _logger.warning(
                "AEVENTS['SERVICES'][%r]: %s. What it was before stays in use.",
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
    if cert:
        with _told_of("CERT"):
            context.load_cert_chain(cert[0], cert[-1], password=_ask_nobody)
    return context


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
