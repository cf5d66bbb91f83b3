"""What a database's error means: an exception in, "it passes" or not out; and a line in the log, not many.

It passes: a lost connection, a restart, a deadlock, a serialization failure, a lock that was waited for
too long, a pool or a disk that is full. Then no delivery is to blame, and no attempt is spent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

from django.db import InterfaceError, InternalError, OperationalError, ProgrammingError

_logger = logging.getLogger("aevents")
_TELL_EVERY_S = 60.0
_told_at: dict[str, float] = {}
_lock = threading.Lock()

# PostgreSQL's classes of SQLSTATE (appendix A of its manual): connection, transaction rollback, resources,
# limits, operator intervention, system; and "lock not available".
_CLASSES = frozenset({"08", "40", "53", "57", "58"})
_LOCK_NOT_AVAILABLE = "55P03"
# MariaDB's and MySQL's numbers: too many connections, server going down, lock wait, deadlock, killed, read
# only, and the client's own of connections lost or refused (2xxx).
_NUMBERS = frozenset({1040, 1053, 1077, 1129, 1152, 1158, 1159, 1160, 1161, 1203, 1205, 1213, 1226, 1290})
_NUMBERS |= {1317, 1836, 1927, 1969, 2002, 2003, 2006, 2013, 2014, 2055, 3024, 4031}
_SQLITE = ("locked", "busy", "disk i/o error", "disk is full", "unable to open database file", "interrupted")
_NO_TABLE = ("no such table", "does not exist", "doesn't exist")
_NO_TABLE_CODES = frozenset({"42P01", 1146})


def passes(error: BaseException) -> bool:
    """Tell whether the same statement may succeed later, the database's trouble being over."""
    if is_missing_tables(error):
        return False
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, (OperationalError, InternalError)):
        return False
    codes = list(_codes(error))
    states = [code for code in codes if isinstance(code, str)]
    if states:
        return any(state[:2] in _CLASSES or state == _LOCK_NOT_AVAILABLE for state in states)
    numbers = [code for code in codes if isinstance(code, int)]
    if numbers:
        return any(number in _NUMBERS for number in numbers)
    text = str(error).lower()
    if "sqlite" in type(error.__cause__).__module__:
        return any(part in text for part in _SQLITE)
    return isinstance(error, OperationalError)  # psycopg says so of connections that were never made


def is_missing_tables(error: BaseException) -> bool:
    """Tell whether the tables of aevents are not there."""
    if not isinstance(error, (OperationalError, ProgrammingError)):
        return False
    is_table = any(code in _NO_TABLE_CODES for code in _codes(error))
    text = str(error).lower()
    return "aevents_" in text and (is_table or any(part in text for part in _NO_TABLE))


def explain(error: BaseException) -> str:
    """Return the error in one line, with the mend where there is one."""
    if is_missing_tables(error):
        return "the tables of aevents are missing: run `manage.py migrate aevents`"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def tell(text: str, error: BaseException) -> None:
    """Log a warning, at most one a minute for each text; with the traceback where nobody expected it."""
    now = time.monotonic()
    with _lock:
        if now - _told_at.get(text, -_TELL_EVERY_S) < _TELL_EVERY_S:
            return
        _told_at[text] = now
    is_known = passes(error) or is_missing_tables(error)
    _logger.warning("%s: %s", text, explain(error), exc_info=None if is_known else error)


def _codes(error: BaseException) -> Iterator[str | int]:
    """Yield the driver's codes: SQLSTATEs as text, MariaDB's numbers as int."""
    for each in (error, error.__cause__):
        state = getattr(each, "sqlstate", None) or getattr(each, "pgcode", None)
        if isinstance(state, str):
            yield state
        arguments = getattr(each, "args", ())
        if arguments and isinstance(arguments[0], int) and not isinstance(arguments[0], bool):
            yield arguments[0]
