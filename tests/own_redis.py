"""A Redis of the test's own: with `is_safe` it writes each command to disk before it answers."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.brokers import OwnBroker, missing


class OwnRedis(OwnBroker):
    def __init__(self, folder: Path, *, is_safe: bool = True) -> None:
        super().__init__(folder, is_safe=is_safe)
        if shutil.which("redis-server") is None:
            missing("no redis-server")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        keeps = ["--appendonly", "yes", "--appendfsync", "always" if self.is_safe else "everysec"]
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        return ["redis-server", *where, "--save", "", *keeps]
