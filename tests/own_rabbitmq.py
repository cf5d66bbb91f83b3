"""A RabbitMQ of the test's own: a node of its own name, beside the shared one of the machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.brokers import OwnBroker, free_port, missing

#: Not Debian's wrappers in /usr/sbin, which become another user and another process.
FOLDERS = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin")


class OwnRabbit(OwnBroker):
    """`is_safe` changes nothing: quorum queues are on disk before they confirm, there is no switch for it.

    `settings` are lines of its rabbitmq.conf.
    """

    def __init__(self, folder: Path, *, is_safe: bool = True, settings: tuple[str, ...] = ()) -> None:
        super().__init__(folder.absolute(), is_safe=is_safe)
        self.settings = settings
        self._port_between_nodes = free_port()
        self._programs = next((each for each in FOLDERS if os.path.exists(f"{each}/rabbitmq-server")), "")
        if not self._programs:
            missing(f"no rabbitmq-server in {' or '.join(FOLDERS)}")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def command(self) -> list[str]:
        # In a session of its own: the script and what it starts are killed as one group. epmd, which all
        # nodes of a machine share, makes another for itself.
        return ["setsid", "env", "-i", *self._variables(), f"{self._programs}/rabbitmq-server"]

    def kill(self) -> None:
        if self.process is None:
            return
        group = self.process.pid
        os.killpg(group, signal.SIGKILL)
        super().kill()
        # Its name and its port are in use until the last of them is gone.
        ends = time.monotonic() + 30
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < ends:
                os.killpg(group, 0)
                time.sleep(0.02)

    def control(self, *arguments: str) -> str:
        """Have rabbitmqctl do something to this node; return what it says."""
        command = ["env", "-i", *self._variables(), f"{self._programs}/rabbitmqctl", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def _variables(self) -> list[str]:
        """Return what makes it a node apart: none of its names, ports and files are those of another."""
        config, plugins = self.folder / "own.conf", self.folder / "plugins"
        config.write_text("\n".join([f"listeners.tcp.own = 127.0.0.1:{self.port}", *self.settings, ""]))
        plugins.write_text("[].\n")
        variables = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),  # where the cookie is
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"aevents{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._port_between_nodes),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        return [f"{name}={value}" for name, value in variables.items()]
