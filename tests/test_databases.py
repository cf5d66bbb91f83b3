"""The fixture `store`: a real database of each kind, the same for every thread and child process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.db import connections, transaction

from aevents.settings import conf
from tests import databases
from tests.project.models import Note


@pytest.fixture(autouse=True)
def _is_gone_afterwards() -> Iterator[None]:
    before = django_settings.AEVENTS
    yield
    assert before == django_settings.AEVENTS
    assert not set(databases.KINDS) & set(connections)


def in_a_thread(function: Any) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def texts(store: str) -> list[str]:
    return sorted(Note.objects.using(store).values_list("text", flat=True))


@pytest.mark.parametrize("time", ["first", "second"])
def test_it_is_empty_and_the_setting_names_it(store: str, time: str) -> None:
    assert store == conf().STORE
    assert conf().SERVICE == "tests"
    assert texts(store) == []
    Note.objects.using(store).create(text=time)


def test_it_is_the_kind_that_its_name_says(store: str) -> None:
    connection: Any = connections[store]
    connection.ensure_connection()
    assert connection.vendor == {"mariadb": "mysql"}.get(store, store)
    assert getattr(connection, "mysql_is_mariadb", False) == (store == "mariadb")


def test_what_one_thread_commits_another_sees_and_no_sooner(store: str) -> None:
    # Given a row that is written and not yet committed
    seen: list[list[str]] = []
    with transaction.atomic(using=store):
        Note.objects.using(store).create(text="mine")
        assert connections[store].in_atomic_block
        # When a thread that closes nothing looks
        in_a_thread(lambda: seen.append(texts(store)))
    in_a_thread(lambda: seen.append(texts(store)))
    # Then
    assert seen == [[], ["mine"]]


async def test_async_code_reaches_it(store: str) -> None:
    await Note.objects.using(store).acreate(text="async")
    assert await sync_to_async(texts)(store) == ["async"]


def test_a_transaction_left_open_in_a_thread_holds_up_nobody(store: str) -> None:
    def leave_open() -> None:
        transaction.atomic(using=store).__enter__()
        Note.objects.using(store).create(text="never committed")

    in_a_thread(leave_open)


def test_a_child_process_finds_it(store: str) -> None:
    script = (
        "import django\n"
        "from django.conf import settings\n"
        "from tests import databases\n"
        "settings.configure(\n"
        "    DATABASES={'default': databases.from_environment()}, INSTALLED_APPS=['tests.project']\n"
        ")\n"
        "django.setup()\n"
        "from tests.project.models import Note\n"
        "Note.objects.create(text='from the child')\n"
    )
    variables = {**os.environ, **databases.environment(store)}
    subprocess.run([sys.executable, "-c", script], env=variables, check=True, timeout=60)
    assert texts(store) == ["from the child"]


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_sqlite_is_in_wal_mode_and_begins_immediate(store: str) -> None:
    with connections[store].cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        assert cursor.fetchone() == ("wal",)
    assert connections[store].settings_dict["OPTIONS"]["transaction_mode"] == "IMMEDIATE"


@pytest.mark.django_db
def test_the_usual_database_is_there_beside_it(store: str) -> None:
    Note.objects.create(text="in the default database")
    assert texts(store) == []
