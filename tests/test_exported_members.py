"""The public surface: names, signatures and what comes along with the package."""

from __future__ import annotations

import ast
import importlib
import inspect
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import aevents
from aevents import errors, signals, testing
from aevents.transports import base, contract, rehearsal

PACKAGE = Path(aevents.__file__).parent


def test_the_public_names_are_these() -> None:
    assert aevents.__all__ == [
        "Again",
        "Dead",
        "Emission",
        "Event",
        "InvalidEvent",
        "Result",
        "aemit",
        "aemit_many",
        "current_event",
        "emit",
        "emit_many",
        "flush",
        "subscribe_to",
        "suppressed",
    ]


@pytest.mark.parametrize("name", aevents.__all__)
def test_a_public_name_is_there_and_says_what_it_promises(name: str) -> None:
    member = getattr(aevents, name)
    own = vars(member)["__doc__"] if inspect.isclass(member) else member.__doc__
    assert own
    first = own.split("\n\n")[0].strip()
    assert first[0].isupper()
    assert first.endswith((".", ":"))
    # A dataclass without a docstring gets its signature for one.
    assert not first.startswith(f"{name}(")


def test_no_public_function_hides_a_module() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert not modules & set(aevents.__all__)
    for name in modules - {"__init__", "pytest_plugin", "admin"}:
        assert isinstance(importlib.import_module(f"aevents.{name}"), ModuleType)


@pytest.mark.parametrize(
    ("member", "signature"),
    [
        (aevents.emit, "(event_type, payload, *, key=None)"),
        (aevents.aemit, "(event_type, payload, *, key=None)"),
        (aevents.emit_many, "(events, *, key=None)"),
        (aevents.aemit_many, "(events, *, key=None)"),
        (
            aevents.subscribe_to,
            "(event_type, event_handler=None, *, name=None, atomic=True, timeout_s=None, batch=False)",
        ),
        (aevents.current_event, "()"),
        (aevents.suppressed, "(reason)"),
        (aevents.flush, "(timeout_s=5.0)"),
        (aevents.Result, "(service, outcome, attempts=0, error=None, elapsed_s=0.0)"),
        (aevents.Emission, "(id, event_type, results=(), error=None)"),
        (testing.deliver, "(event_type, payload, *, source='test', key=None)"),
        (testing.adeliver, "(event_type, payload, *, source='test', key=None)"),
        (base.Transport.send, "(self, destination, message)"),
        (base.Transport.mistake_in, "(url)"),
        (base.Transport.close, "(self)"),
        (base.Transport, "(**options)"),
        (base.Destination, "(name, url, keys=(), format='', ca='', cert=(), mistake='')"),
    ],
)
def test_parameters_keep_their_names_and_order(member: Any, signature: str) -> None:
    found = inspect.signature(member)
    bare = found.replace(
        parameters=[p.replace(annotation=p.empty) for p in found.parameters.values()],
        return_annotation=found.empty,
    )
    assert str(bare) == signature


@pytest.mark.parametrize(("sync", "twin"), [("emit", "aemit"), ("emit_many", "aemit_many")])
def test_an_async_twin_has_the_same_signature(sync: str, twin: str) -> None:
    assert inspect.signature(getattr(aevents, sync)) == inspect.signature(getattr(aevents, twin))
    assert inspect.iscoroutinefunction(getattr(aevents, twin))


def test_a_result_has_these_outcomes() -> None:
    from aevents.emission import Outcome

    assert Outcome.__args__ == ("delivered", "queued", "parked", "failed")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("outcomes", "ok", "delivered"),
    [
        ([], True, True),
        (["delivered"], True, True),
        (["delivered", "queued"], True, False),
        (["parked"], True, False),
        (["delivered", "failed"], False, False),
    ],
)
def test_ok_is_nothing_lost_and_delivered_is_everybody_has_it(
    outcomes: list[Any], ok: bool, delivered: bool
) -> None:
    emission = aevents.Emission("id", "x", tuple(aevents.Result("s", outcome) for outcome in outcomes))
    assert (emission.ok, emission.delivered) == (ok, delivered)

    wrong = aevents.Emission("", "x", error="no payload")
    assert (wrong.ok, wrong.delivered) == (False, False)


def test_the_signals_are_these() -> None:
    found = {name for name, value in vars(signals).items() if isinstance(value, signals.Signal)}
    assert found == {
        "event_emitted",
        "event_delivered",
        "delivery_failed",
        "delivery_dead",
        "event_received",
        "event_duplicate",
        "handler_succeeded",
        "handler_failed",
        "handler_deferred",
        "destination_down",
        "destination_up",
    }


def test_the_errors_are_those_of_the_tree_in_the_docstring() -> None:
    found = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    assert errors.__doc__
    assert all(issubclass(error, errors.AeventsError) for error in found.values())
    assert all(name in errors.__doc__ for name in found)


def _has_help(node: ast.AST) -> bool:
    """Tell whether it is a command, whose `help` says what it does."""
    body = node.body if isinstance(node, ast.ClassDef) else []
    targets = [target for each in body if isinstance(each, ast.Assign) for target in each.targets]
    return any(isinstance(target, ast.Name) and target.id == "help" for target in targets)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if not {"demo", "migrations"} & set(path.parts)],
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_what_a_module_offers_says_what_it_promises(path: Path) -> None:
    """Every public function and class at the top of a module has a docstring."""
    tree = ast.parse(path.read_text())
    silent = [
        node.name
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not _has_help(node)
        and "overload" not in [getattr(decorator, "id", "") for decorator in node.decorator_list]
    ]
    # Django's own classes say it for theirs.
    assert [name for name in silent if name != "AeventsConfig"] == []


def test_the_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_the_plugin_of_pytest_is_registered() -> None:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"aevents": "aevents.pytest_plugin"}
    assert importlib.import_module("aevents.pytest_plugin").emitted


def test_the_contract_is_there_for_third_parties() -> None:
    assert inspect.isclass(contract.TransportContract)
    assert not contract.TransportContract.__name__.startswith("Test")  # only subclasses are collected
    for name in ("Mailbox", "an_event", "outcome", "rehearse"):
        assert getattr(rehearsal, name).__doc__
