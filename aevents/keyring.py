"""Whose key is whose: `SECRETS`, the fleet's and each service's, in; the keys that sign and verify out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aevents.signature import key_of

FLEET = ""  # who signed, where any service of the fleet may have


@dataclass(frozen=True)
class Keyring:
    """The keys of a service. `mistakes`: why nothing may be signed or verified before they are mended."""

    fleet: tuple[bytes, ...] = field(default=(), repr=False)
    pairwise: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict, repr=False)
    own: str = ""
    mistakes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.fleet or any(self.pairwise.values()))

    def signing_for(self, service: str) -> tuple[bytes, ...]:
        """Return the keys that sign what goes to `service`, newest first: its own, else the fleet's."""
        return self.pairwise.get(service) or self.fleet

    def verifying(self, hint: str) -> Iterator[tuple[str, bytes]]:
        """Yield every key with the name of who may have signed with it; first those of `hint`.

        Those that many may have signed with come before those of one service: not all need be tried.
        """
        if hint != self.own:
            yield from self._of(hint, hint)
        for key in self.fleet:
            yield FLEET, key
        # With the keys of this service's own entry sign those who send to it, whoever they are.
        yield from self._of(self.own, FLEET)
        for service in self.pairwise:
            if service not in (hint, self.own):
                yield from self._of(service, service)

    def _of(self, service: str, signer: str) -> Iterator[tuple[str, bytes]]:
        for key in self.pairwise.get(service, ()):
            if key not in self.fleet:  # there to be signed with, while a fleet moves: it tells nobody
                yield signer, key


def read(secrets: Any, services: Mapping[str, Any], own: str) -> Keyring:
    """Return the keyring of these settings. A secret's text is never repeated in a mistake.

    A secret is in one place, or it would not tell who signed. But behind a service's own may stand one of
    the fleet's: what goes there is signed with both, while one service after the other learns of its own.
    """
    mistakes: list[str] = []
    places: dict[bytes, str] = {}
    fleet = _keys(secrets, "AEVENTS['SECRETS']", places, mistakes, ())
    pairwise = {
        name: _keys(
            entry.get("SECRETS", ()), f"AEVENTS['SERVICES'][{name!r}]['SECRETS']", places, mistakes, fleet
        )
        for name, entry in services.items()
        if isinstance(entry, Mapping)
    }
    return Keyring(fleet, {name: keys for name, keys in pairwise.items() if keys}, own, tuple(mistakes))


def _keys(
    secrets: Any, where: str, places: dict[bytes, str], mistakes: list[str], fleet: tuple[bytes, ...]
) -> tuple[bytes, ...]:
    if isinstance(secrets, (str, bytes, Mapping)) or not isinstance(secrets, Iterable):
        mistakes.append(f"{where} is a {type(secrets).__name__}: it must be a list of secrets")
        return ()
    keys: list[bytes] = []
    for number, secret in enumerate(secrets):
        place = f"{where}[{number}]"
        try:
            key = key_of(secret)
        except ValueError as error:
            mistakes.append(f"{place} is no secret: {error}")
            continue
        if key in places and not (keys and key in fleet and key not in keys):
            mistakes.append(f"{place} is the same as {places[key]}")
            continue
        places.setdefault(key, place)
        keys.append(key)
    return tuple(keys)
