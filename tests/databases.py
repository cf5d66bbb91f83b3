"""The real databases that the store is tested on: SQLite, PostgreSQL and MariaDB.

In come the addresses of the servers; out go databases of this process's own, migrated, and what Django
and child processes need to open them.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.management import call_command
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.utils import ConnectionHandler
from django.test import override_settings

from tests import settings as plain

KINDS = ("sqlite", "postgresql", "mariadb")  # each also is the alias of its database
VARIABLES = {"postgresql": "AEVENTS_TEST_POSTGRESQL", "mariadb": "AEVENTS_TEST_MARIADB"}
ADDRESSES = {"postgresql": "postgresql://postgres@127.0.0.1:5432", "mariadb": "mysql://root@127.0.0.1:3306"}
ENGINES = {
    "sqlite": "django.db.backends.sqlite3",
    "postgresql": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "sqlite": {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL",
    },
}
CREATE = {
    "postgresql": "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'",
    "mysql": "CREATE DATABASE {} CHARACTER SET utf8mb4",
}
DROP = {
    "postgresql": "DROP DATABASE IF EXISTS {} WITH (FORCE)",
    "mysql": "DROP DATABASE IF EXISTS {}",
}
LIST = {
    "postgresql": "SELECT datname FROM pg_database",
    "mysql": "SHOW DATABASES",
}
LOCK_S = 20  # how long a statement of ours waits for what somebody has left locked


class Unavailable(Exception):
    """No such server answers."""


# Where Django finds them


def configuration(url: str) -> dict[str, Any]:
    """Return what stands in `DATABASES` for a database, with all that Django fills in."""
    parts = urlsplit(url)
    if parts.scheme == "mysql":
        import pymysql

        pymysql.install_as_MySQLdb()
    given = {
        "ENGINE": ENGINES[parts.scheme],
        "NAME": unquote(parts.path[1:]),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "OPTIONS": OPTIONS.get(parts.scheme, {}),
    }
    filled_in: dict[str, Any] = ConnectionHandler({"default": given}).settings["default"]
    return filled_in


def environment(alias: str) -> dict[str, str]:
    """Return the variables by which a child process finds the database of the fixture `store`."""
    return {"STORE_URL": _databases[alias].url}


def from_environment(variables: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return `DATABASES["default"]` for the settings of a child process: see `environment`."""
    return configuration(variables["STORE_URL"])


# This process's own


class Database:
    """A database with all tables, known to Django only while it is `attached`."""

    def __init__(self, alias: str, url: str) -> None:
        self.alias = alias
        self.url = url
        self._configuration = configuration(url)
        self._opened: list[BaseDatabaseWrapper] = []
        with self._known():
            call_command("migrate", database=alias, run_syncdb=True, verbosity=0, interactive=False)
            self._tables = connections[alias].introspection.django_table_names(include_views=False)

    @contextlib.contextmanager
    def attached(self) -> Iterator[str]:
        """Have the alias in Django, for every thread, and the tables empty.

        Nothing wraps what happens inside: what is committed is committed. In the end no thread has a
        connection left.
        """
        with self._known():
            self.empty()
            yield self.alias

    def empty(self) -> None:
        """Remove all rows, and leave no connection open."""
        connection = connections[self.alias]
        with (
            contextlib.closing(connection),
            connection.constraint_checks_disabled(),
            transaction.atomic(using=self.alias),
            connection.cursor() as cursor,
        ):
            if connection.vendor == "postgresql":
                cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_S}s'")
            for table in self._tables:
                cursor.execute(f"DELETE FROM {connection.ops.quote_name(table)}")  # noqa: S608

    @contextlib.contextmanager
    def _known(self) -> Iterator[None]:
        # A new dict each time: other threads may be going through the old one.
        connections.settings = {**connections.settings, self.alias: self._configuration}
        connection_created.connect(self._note)
        try:
            yield
        finally:
            connection_created.disconnect(self._note)
            self._close()
            connections.settings = {k: v for k, v in connections.settings.items() if k != self.alias}

    def _note(self, connection: BaseDatabaseWrapper, **_: Any) -> None:
        if connection.alias == self.alias:
            self._opened.append(connection)

    def _close(self) -> None:
        """Close the connections of all threads, those that have ended without closing theirs too."""
        while self._opened:
            connection = self._opened.pop()
            connection.inc_thread_sharing()
            connection.close()
            connection.dec_thread_sharing()


_databases: dict[str, Database] = {}
_unavailable: dict[str, Unavailable] = {}


def get(alias: str, folder: Path) -> Database:
    """Return this process's database of that kind, made at the first call; SQLite's is in `folder`."""
    if alias in _unavailable:
        raise _unavailable[alias]
    if alias not in _databases:
        url = f"sqlite:///{folder}/store.sqlite3" if alias == "sqlite" else _create(alias)
        # Whatever the settings of the test that comes first: all later ones share it.
        with override_settings(INSTALLED_APPS=plain.INSTALLED_APPS, DATABASE_ROUTERS=[]):
            _databases[alias] = Database(alias, url)
    return _databases[alias]


def drop_all() -> None:
    """Drop what `get` has made."""
    for alias, database in list(_databases.items()):
        del _databases[alias]
        _drop(database.url)


@contextlib.contextmanager
def temporary(kind: str, label: str, folder: Path) -> Iterator[str]:
    """Give the URL of one more database, without any table; SQLite's is in `folder`."""
    url = f"sqlite:///{folder}/{label}.sqlite3" if kind == "sqlite" else _create(kind, f"{label}_")
    try:
        yield url
    finally:
        _drop(url)


def _drop(url: str) -> None:
    server, _, name = url.rpartition("/")
    scheme = urlsplit(server).scheme
    if scheme in DROP:  # SQLite's goes with its folder
        _run(server, DROP[scheme].format(name))


# The servers


def address(kind: str) -> str:
    """Return where the server is."""
    return os.environ.get(VARIABLES[kind], "").rstrip("/") or ADDRESSES[kind]


def is_required(kind: str) -> bool:
    """Tell whether a server that does not answer is a failure: in CI, and where one is named."""
    return bool(os.environ.get("CI") or os.environ.get(VARIABLES.get(kind, "")))


def _create(kind: str, label: str = "") -> str:
    """Make an empty database, in the place of those whose processes were killed; return its URL."""
    server = address(kind)
    scheme = urlsplit(server).scheme
    try:
        present = [name for (name,) in _run(server, LIST[scheme])]
    except Exception as error:
        reason = f"{kind} does not answer at {server} ({VARIABLES[kind]}): {error}"
        _unavailable[kind] = Unavailable(" ".join(reason.split()))
        raise _unavailable[kind] from error
    own = _name(os.getpid(), label)
    for name in present:
        if name == own or _is_left_over(name):
            _run(server, DROP[scheme].format(name))
    _run(server, CREATE[scheme].format(own))
    return f"{server}/{own}"


def _name(pid: int, label: str = "") -> str:
    return f"aevents_test_{zlib.crc32(socket.gethostname().encode()):08x}_{label}{pid}"


def _is_left_over(name: str) -> bool:
    """Tell whether the process that made the database ran on this host and is gone."""
    found = re.fullmatch(re.escape(_name(0)[:-1]) + r"(?:[a-z]+_)?(\d+)", name)
    if found is None:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # somebody else's, alive
    return False


def _run(server: str, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement on a server, in no database of the tests."""
    parts = urlsplit(server)
    where: dict[str, Any] = {
        "host": parts.hostname,
        "port": parts.port,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "connect_timeout": 5,
        "autocommit": True,
    }
    connection: Any
    if parts.scheme == "postgresql":
        import psycopg

        connection = psycopg.connect(dbname="postgres", **where)
    else:
        import pymysql

        connection = pymysql.connect(init_command=f"SET lock_wait_timeout = {LOCK_S}", **where)
    with contextlib.closing(connection), contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []
