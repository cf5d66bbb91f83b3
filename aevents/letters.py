"""What a broker has brought and this service refuses: a message in, a dead letter in the store out.

Nobody can be answered 401 or 400 here, and what is left in the broker would come again for ever. So the
message is stored as it came, owed to a handler of our own, and tried again as an emitter would
(`retry.later`): one that is no event after 2 min, 30 min and 2 h, as a deploy may be on its way; one that
nobody known has signed by `SCHEDULE`, as a key may be. Then it is dead, where `replay` and the admin find it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from aevents import cloudevents, outcomes, receiver, retry, store
from aevents.answer import Answer
from aevents.errors import DeliveryError
from aevents.event import Event, Message, derived_id, new_id
from aevents.keeper import keeper
from aevents.settings import conf
from aevents.store import Entry, Owed
from aevents.subscriptions import subscribe_to
from aevents.tables import IN
from aevents.transports.base import Brought

TYPE = "aevents-refused"
HANDLER = "aevents.refused"
_PATIENCE_S = 8.0
_STATED = "The broker {!r} brought what is refused here: {}"


def take_back() -> None:
    """Let this process try again what is kept of this kind."""
    subscribe_to(TYPE, _receive_again, name=HANDLER)


async def keep(place: str, message: Message, answer: Answer) -> Answer:
    """Keep a message that was refused with `answer`; return the answer that the broker is to get."""
    error = _error(place, answer)
    later = retry.later(0, 0, error)
    event = _letter(place, message)
    owed = Owed(HANDLER, False, later.in_s, later.attempts, later.refusals, str(error), later.is_dead)
    try:
        (kept,) = keeper.ask_all(store.arrive, [Entry(IN, event, (owed,))], patience_s=_PATIENCE_S)
        await outcomes.in_time(kept, _PATIENCE_S + 1.0)
    except Exception:  # told of by the keeper; the broker keeps it meanwhile
        return Answer(503, {"status": "unavailable"}, {"retry-after": "1"})
    if later.is_dead:
        outcomes.died(event, HANDLER, later.attempts, str(error))
    keeper.look_in(later.in_s)
    return Answer(202, {"status": "stored"})


def _letter(place: str, message: Message) -> Event:
    body = message.body[: int(conf().LIMITS.BODY_BYTES)]  # as no event may be longer, nothing of one is lost
    # Whatever a client made of foreign bytes: what cannot be written must not come again for ever.
    headers = {_writable(name): _writable(value) for name, value in message.headers.items()}
    content: dict[str, Any] = {"broker": place, "headers": headers}
    if len(body) < len(message.body):
        content["cut_from_bytes"] = len(message.body)
    try:
        content["body"] = body.decode()
    except UnicodeDecodeError:
        content["body_base64"] = base64.b64encode(body).decode()
    data = orjson.dumps(content)
    # The same message is one letter, however often it comes.
    digest = hashlib.sha256(_writable(_known_by(message)).encode() + b"\0" + message.body).hexdigest()
    return Event(derived_id(digest, HANDLER, TYPE, 0), TYPE, data, place, datetime.now(UTC))


def _known_by(message: Message) -> str:
    """Return what makes it the same as another of the same body; without that each is one of its own."""
    headers = message.headers
    if headers.get("webhook-id"):
        return headers["webhook-id"]
    if headers.get("ce-id"):
        return f"{headers.get('ce-source', '')}\0{headers['ce-id']}"
    return "" if cloudevents.is_structured(headers) else new_id()  # whose id is in its body


def _writable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


async def _receive_again(letter: Any) -> None:
    """Take a message that was refused before."""
    place, message = _opened(letter)
    # A kept message is no redelivery by itself, and its order is lost already.
    (answer,) = await receiver.receive_all([Brought(message)], peer=place)
    if not 200 <= answer.status < 300:
        raise _error(place, answer)


def _opened(letter: Mapping[str, Any]) -> tuple[str, Message]:
    is_text = "body" in letter
    body = letter["body"].encode() if is_text else base64.b64decode(letter["body_base64"])
    return str(letter["broker"]), Message(dict(letter["headers"]), body)


def _error(place: str, answer: Answer) -> DeliveryError:
    detail = _STATED.format(place, str(answer.content.get("detail", answer.status)))
    return retry.failure(answer.status, detail, None, answered=True)
