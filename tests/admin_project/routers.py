"""Where the tables of the project are: the users' in `people`, and none of aevents there."""

from __future__ import annotations

from typing import Any


class People:
    """Knows nothing of the store: aevents asks no router."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return None if model._meta.app_label == "aevents" else "people"

    db_for_write = db_for_read

    def allow_relation(self, one: Any, other: Any, **hints: Any) -> bool:
        return True

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return (db == "people") != (app_label == "aevents")
