"""A broker of Kafka's protocol of the test's own: noida-db, a wheel for Linux on x86-64.

It keeps all in memory and writes a copy to disk about each second: killed -9 it loses what it has confirmed
last, and also where a signal tells it to end. So with `is_safe` it is first told to stop Kafka, which cuts
all connections and keeps all that was confirmed, and killed then.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import brokers, kafka_tools
from tests.brokers import OwnBroker


class OwnKafka(OwnBroker):
    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        where = ["--kafka-port", str(self.port), "--data-dir", str(self.folder / "data")]
        return [str(program()), "start", "--only", "kafka", *where]

    def kill(self) -> None:
        if self.process is not None and self.is_safe:
            stop = [str(program()), "stop", "kafka", "--data-dir", str(self.folder / "data")]
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(stop, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
        super().kill()

    def bury(self, group: str) -> None:
        asyncio.run(kafka_tools.expel(group, self.url))

    def freeze(self) -> None:
        """Let it answer nothing, until `thaw`; its connections stay."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


def program() -> Path:
    """Return the program itself, which a killed wrapper would outlive; skip where there is none."""
    found = importlib.util.find_spec("noida_db")
    if found is None or found.origin is None:
        brokers.missing("needs noida-db, a broker of Kafka's protocol, which has a wheel for Linux on x86-64")
        pytest.skip("unreachable")
    path = Path(found.origin).parent / "noida-db"
    path.chmod(0o755)
    return path
