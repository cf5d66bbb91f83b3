"""Who may import whom: the road, from top to bottom, and how long a station may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import aevents

PACKAGE = Path(aevents.__file__).parent
LONGEST = 300
#: Each line imports only from the lines below it; the modules of one line do not know each other.
#: The map in the docstring of `aevents/__init__.py` shows the same road.
ROAD = """
    urls  apps  pytest_plugin  commands
    commands/overview  commands/worker  commands/replay  commands/discard
    commands/pause  commands/prune  commands/erase
    commands/status  commands/selection  commands/secret  commands/transports
    commands/base
    views  asgi  testing  admin
    columns  remedies  filters
    listening
    letters
    emitter  receiver  relay  readable
    intake
    outbox  inbox  status
    courier  checks
    checks_of_places  transports/contract_of_brokers
    arrivals  lane  replies  checks_of_trust  transports/contract_of_listening
    convoy  endings  routes  dispatcher  recorder  composer  transports/local  transports/contract
    transports  transports/http  transports/memory  transports/contract_of_batches  parking  backlog  home
    transports/redis  transports/rabbitmq  transports/kafka  transports/nats  transports/tcp
    transports/rabbitmq_queue  transports/kafka_producer  transports/nats_source
    transports/redis_streams  transports/kafka_source  transports/nats_places  transports/tcp_server
    transports/rehearsal  transports/nats_connection  transports/tcp_caller  transports/tcp_client
    transports/kafka_reader  transports/kafka_batches
    transports/broker
    transports/sources  transports/bindings  transports/frames
    outcomes  shipment  upkeep
    keeper
    holdings  jobs  calls
    queues
    turns
    store  claims
    batch  transports/offers  transports/tls  pace
    cloudevents
    tables  wire  retry  breaker  subscriptions  log  loops  scope  recent  returns  commits  outage
    models  rows  transports/base  transports/connection  keyring
    signature
    transports/guard  transports/names  transports/topics  transports/nats_client
    event  threads
    emission  answer  payload  settings  errors  signals
"""
LINES = [line.split() for line in ROAD.strip().splitlines()]
#: How far down the road each module stands; `aevents` itself gives the public names to those above it.
DEPTH = {module: depth for depth, line in enumerate(LINES) for module in line}
PUBLIC = "aevents"


def files() -> dict[str, Path]:
    """Return the file of every module; the demo is a user of aevents and no part of it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")
        if name.partition("/")[0] not in ("demo", "migrations", "management"):
            found[PUBLIC if name == "__init__" else name] = path
    return found


FILES = files()


def imports_of(code: str) -> Iterator[str]:
    """Yield each module of aevents that `code` imports, wherever it does so and for what reason ever."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package != PUBLIC:
                continue
            parts = rest.split(".") if rest else []
            while parts and "/".join(parts) not in FILES:
                parts.pop()  # the last is a name within the module
            yield "/".join(parts) or PUBLIC


def is_downward(importer: str, imported: str) -> bool:
    if imported == PUBLIC:
        return DEPTH[importer] < DEPTH["emitter"]
    if importer == PUBLIC:
        return DEPTH[imported] >= DEPTH["emitter"]
    return DEPTH[importer] < DEPTH[imported]


def test_every_module_has_its_place_on_the_road() -> None:
    assert set(DEPTH) == set(FILES) - {PUBLIC}
    assert sum(map(len, LINES)) == len(DEPTH)


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_from_below(module: str) -> None:
    imported = set(imports_of(FILES[module].read_text()))

    assert [name for name in sorted(imported) if not is_downward(module, name)] == []


@pytest.mark.parametrize("module", FILES)
def test_a_module_is_short_and_says_what_it_is(module: str) -> None:
    code = FILES[module].read_text()

    assert len(code.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(code)), "a module's docstring says which station this is"


def test_the_map_in_the_package_shows_the_same_road() -> None:
    lines = [line.strip() for line in (aevents.__doc__ or "").splitlines() if line.startswith("    ")]

    assert [re.split(" {3,}", line)[0].split() for line in lines] == LINES


@pytest.mark.parametrize(
    ("code", "imported"),
    [
        ("import aevents", ["aevents"]),
        ("import aevents.wire as w", ["wire"]),
        ("from aevents import emit", ["aevents"]),
        ("from aevents import wire, emit", ["wire", "aevents"]),
        ("from aevents.transports import base", ["transports/base"]),
        ("from aevents.transports import scheme_of", ["transports"]),
        ("from aevents.transports.base import Transport", ["transports/base"]),
        ("if TYPE_CHECKING:\n    from aevents.lane import Lane", ["lane"]),
        ("def f():\n    import aevents.courier", ["courier"]),
        ("import aeventsx, django.db\nfrom aevents_x import y", []),
    ],
)
def test_an_import_is_found_however_it_is_written(code: str, imported: list[str]) -> None:
    assert list(imports_of(code)) == imported


@pytest.mark.parametrize(
    ("importer", "imported", "may"),
    [
        ("emitter", "courier", True),
        ("emitter", "receiver", False),
        ("receiver", "emitter", False),
        ("wire", "courier", False),
        ("event", "event", False),
        ("testing", "aevents", True),
        ("emitter", "aevents", False),
        ("aevents", "receiver", True),
        ("aevents", "views", False),
    ],
)
def test_downward_is_downward(importer: str, imported: str, may: bool) -> None:
    assert is_downward(importer, imported) is may
