"""The pages on brokers: settings that pass the checks, names, options and flags as they are in the code."""

from __future__ import annotations

import ast
import re
import struct
from pathlib import Path
from typing import Any

import orjson
import pytest

from aevents import checks, routes
from aevents.commands.transports import COLUMNS
from aevents.transports import BUILT_IN, frames, topics, transport_class
from tests.pages import DOCS, Block, Page

pytest.importorskip("redis")
pytest.importorskip("aio_pika")
pytest.importorskip("aiokafka")
pytest.importorskip("nats")

PAGES = {
    "redis": Page(DOCS / "redis.md"),
    "rabbitmq": Page(DOCS / "rabbitmq.md"),
    "kafka": Page(DOCS / "kafka.md"),
    "nats": Page(DOCS / "nats.md"),
    "tcp": Page(DOCS / "tcp.md"),
}
GROWING = Page(DOCS / "growing.md")


def _settings_on(page: Page, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the `AEVENTS` of each Python block of a page."""
    found = []
    for block in page.steps:
        if isinstance(block, Block) and block.language == "python":
            names = {**names}
            exec(page.take(block).text, names)  # noqa: S102 - our own page
            if "AEVENTS" in names:
                found.append(names["AEVENTS"])
    return found


def test_the_settings_on_the_page_pass_the_checks(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(DOCS / "brokers.md")
    files = page.files()
    module: dict[str, Any] = {}
    exec(files["devops/events.py"], module)  # noqa: S102 - our own page
    own: dict[str, Any] = {}
    exec(files["orders/settings.py"], own)  # noqa: S102 - our own page
    secret = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    settings.AEVENTS = {
        **own["AEVENTS"],
        "BROKERS": module["BROKERS"],
        "SUBSCRIPTIONS": module["SUBSCRIPTIONS"],
        "SECRETS": [secret],
    }
    monkeypatch.setattr(checks.tables, "why_not", lambda: None)

    assert [each for each in checks.check_settings() if "sqlite" not in str(each).lower()] == []
    assert [place.name for place in routes.places()] == ["bus"]
    assert page.next("console").text.splitlines() == [
        "$ pip install 'aevents[redis]'",
        "$ python manage.py aevents worker",
    ]
    page.assert_all_were_run()


@pytest.mark.parametrize("name", ["redis", "rabbitmq", "kafka", "nats", "tcp"])
def test_the_settings_on_each_page_can_be_used(name: str, settings: Any) -> None:
    for shown in _settings_on(PAGES[name], {}):
        settings.AEVENTS = {"SERVICE": "orders", **shown}
        mistakes = [each for each in checks.check_settings() if each.id in ("aevents.E005", "aevents.E013")]
        assert mistakes == []


def test_the_table_of_capabilities_is_that_of_the_transports() -> None:
    (table, *_) = Page(DOCS / "brokers.md").tables()
    listed: dict[str, list[bool]] = {}
    for schemes, *cells in table:
        for scheme in re.findall(r"`(\w+)`", schemes):
            listed[scheme] = [cell == "yes" for cell in cells]

    flags = [flag for name, flag in COLUMNS.items() if name != "listens"]
    assert listed == {
        scheme: [getattr(transport_class(scheme), flag) for flag in flags]
        for scheme in BUILT_IN
        if scheme not in ("local", "memory")
    }


def test_the_names_on_the_page_are_those_in_a_broker() -> None:
    names = Page(DOCS / "brokers.md").tables()[1]
    assert names
    for event_type, topic in names:
        assert topics.topic_of(_code(event_type)) == _code(topic)
        assert topics.type_of(_code(topic)) == _code(event_type)


@pytest.mark.parametrize("name", ["redis", "kafka", "nats", "rabbitmq"])
def test_each_option_on_a_page_is_read_with_its_default(name: str) -> None:
    code = "".join(path.read_text() for path in Path(routes.__file__).parent.glob(f"transports/{name}*.py"))
    options = {_code(row[0]): row[1].strip("`") for row in PAGES[name].tables()[0]}

    assert "PREFIX" in options
    assert ast.literal_eval(repr(topics.PREFIX)) == options.pop("PREFIX").strip('"')
    for option in options:
        assert f'"{option}"' in code, option


def test_the_frame_on_the_page_on_tcp_is_one_to_the_byte() -> None:
    text = PAGES["tcp"].next("text").text
    data = bytes.fromhex(" ".join(re.findall(r"^((?:[0-9a-f]{2} {1,2})+)", text + "\n", re.MULTILINE)))

    assert data.startswith(frames.PREFACE)
    frame = data[len(frames.PREFACE) :]
    length, number, status, of_headers = struct.unpack_from(">IIHH", frame)
    assert (length, number, status, of_headers) == (len(frame) - 4, 7, 0, 19)
    assert orjson.loads(frame[12 : 12 + of_headers]) == {"webhook-id": "ab"}
    assert frame[12 + of_headers :] == b"{null}"


def test_the_growing_page_has_no_example() -> None:
    GROWING.assert_all_were_run()


def _code(cell: str) -> str:
    return cell.strip().strip("`")
