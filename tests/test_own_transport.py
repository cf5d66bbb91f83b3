"""The page that builds a transport: its code passes the contract, and carries events between two services."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from aevents import checks, emit
from aevents.event import new_id
from tests.pages import DOCS, ROOT, Page, run, write
from tests.workers import Worker, is_empty, rows

PAGE = DOCS / "transports.md"
_PYTEST = "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -q -W error -p no:cacheprovider"
_PLUGINS = "-p pytest_django.plugin -p xdist.plugin -n 4"


@pytest.fixture
def page() -> Page:
    return Page(PAGE)


@pytest.fixture
def folder(page: Page, tmp_path: Path) -> Path:
    """The project that the page makes."""
    write(tmp_path, {**page.files(), "myproject/__init__.py": ""})
    return tmp_path


def _settings(folder: Path) -> dict[str, Any]:
    """What stands on the page, but for the disk."""
    module: dict[str, Any] = {}
    exec((folder / "myproject" / "settings.py").read_text(), module)  # noqa: S102 - our own page
    found: dict[str, Any] = module["AEVENTS"]
    (folder / "spool" / "bus").mkdir(parents=True)
    found["TRANSPORTS"]["spool"]["ROOT"] = str(folder / "spool")
    return found


def test_it_passes_the_contract(page: Page, folder: Path) -> None:
    told = run(f"{_PYTEST} {_PLUGINS} --ds=tests.settings myproject/test_spool.py", folder)

    assert " passed" in told
    assert page.next("text").text.startswith("ROOT/bus/aevents.order-placed/mailer/new/")
    page.assert_all_were_run()


@pytest.fixture
def worker(store: str, folder: Path) -> Iterator[Worker]:
    """The worker of `mailer`, with the page's settings."""
    aevents = json.dumps(_settings(folder))
    paths = f"{ROOT}:{folder}"
    found = Worker(store, folder, PEER_URL="http://127.0.0.1:9/", AEVENTS=aevents, PYTHONPATH=paths)
    yield found
    found.kill()


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_it_carries_events_from_a_service_to_another(
    store: str, worker: Worker, folder: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    settings.AEVENTS = {**json.loads(worker.env["AEVENTS"]), "SERVICE": "shop", "LISTEN": [], "ENABLED": True}
    settings.AEVENTS |= {"OUTBOX": False, "INBOX": False, "STORE": None, "LIMITS": {"TRIES": 1}}
    assert checks.check_settings() == []
    printed = io.StringIO()
    call_command("aevents", "transports", stdout=printed)
    (row,) = [line.split() for line in printed.getvalue().splitlines() if line.startswith("spool")]
    assert row == ["spool", "yes", "-", "yes", "-", "-", "yes", "-"]

    # Nobody has asked for it
    (result,) = emit("quick", {"n": 0}).results
    assert "no service has asked for this type" in str(result.error)

    worker.start()
    worker.said("Listening to bus as mailer")
    assert emit("quick", {"n": 1}).delivered
    worker.wrote("quick 1")

    # What waits for who is away; and what is no message
    worker.send()
    assert worker.ends() == 0
    assert emit("quick", {"n": 2}).delivered
    group = folder / "spool" / "bus" / "aevents.quick" / "mailer" / "new"
    for content in (b"\x00", b"7\n7", b'{"webhook-id": "%b"}\n[]' % new_id().encode()):
        (group / new_id()).write_bytes(content)
    worker.start()
    worker.wrote("quick 2")
    worker.send()
    assert worker.ends() == 0
    assert worker.lines == ["quick 1", "quick 2"]
    assert [row.target for row in rows(store)] == ["aevents.refused"] * 3
    assert not is_empty(store)
    assert [path.name for path in (folder / "spool").rglob("*") if path.is_file()] == []
