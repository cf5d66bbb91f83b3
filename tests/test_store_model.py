"""The store against a model of it: whatever is done in whatever order, the rows are what they must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from django.db import connections, transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from aevents import claims, store, tables
from aevents.models import Delivery, Pause, Seen, StoredEvent
from aevents.store import Entry, Owed, Setback
from aevents.tables import DEAD, IN, OUT, OWED, SUSPECT, Lease, LeaseLost
from tests.test_store import an_event

TARGETS = ("payments", "Payments", "orders ")
KEYS = (None, None, "k", "K")
LATER_S = 3600.0


@dataclass
class Row:
    """What the model knows of a delivery."""

    target: str
    key: str | None
    event: str
    state: int = OWED
    attempts: int = 0
    losses: int = 0
    token: str = ""
    is_due: bool = True


@dataclass
class Model:
    rows: dict[int, Row] = field(default_factory=dict)

    def may_be_claimed(self, pk: int, target: str, state: int) -> bool:
        row = self.rows[pk]
        is_head = row.key is None or not any(
            other < pk and older.key == row.key and older.target == row.target
            for other, older in self.rows.items()
        )
        return row.target == target and row.state == state and row.is_due and is_head


class StoreMachine(RuleBasedStateMachine):
    alias: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        for model in (Delivery, StoredEvent, Seen, Pause):
            model.objects.using(self.alias).all().delete()
        self.model = Model()
        self.leases: list[Lease] = []
        self.arrived: list[Entry] = []

    # In

    @rule(
        owed_to=st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3, unique=True),
        key=st.sampled_from(KEYS),
        is_leased=st.booleans(),
        is_due=st.booleans(),
    )
    def add(self, owed_to: list[str], key: str | None, is_leased: bool, is_due: bool) -> None:
        is_leased = is_leased and key is None
        event = an_event(key=key)
        owed = tuple(Owed(target, is_leased, 0.0 if is_due else LATER_S) for target in owed_to)
        (leases,) = store.add([Entry(OUT, event, owed)])
        for row in Delivery.objects.using(self.alias).filter(event__event_id=event.id):
            self.model.rows[row.pk] = Row(
                row.target, key, event.id, token=row.lease, is_due=is_due and not is_leased
            )
        self._hold(leases)

    @rule(again=st.booleans(), copies=st.integers(1, 3))
    def arrive(self, again: bool, copies: int) -> None:
        is_known = again and bool(self.arrived)
        entry = self.arrived[-1] if is_known else Entry(IN, an_event(), (Owed("orders "),))
        found = store.arrive([entry] * copies)
        assert [each is not None for each in found] == [not is_known and n == 0 for n in range(copies)]
        if not is_known:
            self.arrived.append(entry)
            (row,) = Delivery.objects.using(self.alias).filter(event__event_id=entry.event.id)
            row.delete()  # what comes in is not claimed by this model
            StoredEvent.objects.using(self.alias).filter(event_id=entry.event.id).delete()

    @rule(name=st.sampled_from(TARGETS))
    def add_and_roll_back(self, name: str) -> None:
        with transaction.atomic(using=self.alias):
            store.add([Entry(OUT, an_event(), (Owed(name, True),))])
            transaction.set_rollback(True, using=self.alias)

    # Out

    @rule(name=st.sampled_from(TARGETS), limit=st.integers(1, 4), suspects=st.booleans())
    def claim(self, name: str, limit: int, suspects: bool) -> None:
        state = SUSPECT if suspects else OWED
        eligible = [pk for pk in self.model.rows if self.model.may_be_claimed(pk, name, state)]
        claimed = claims.claim(OUT, name, limit, suspects=suspects)
        got = {each.lease.id for each in claimed}
        assert got <= set(eligible)
        assert len(got) == len(claimed)
        dropped = set()
        touched = list(
            Delivery.objects.using(self.alias).filter(pk__in=eligible).values_list("pk", "state", "losses")
        )
        for pk, now, losses in touched:
            row = self.model.rows[pk]
            if now != row.state:  # it was lost once too often
                assert losses == row.losses + 1
                assert losses > (tables.LOST_AFTER if suspects else tables.SUSPECT_AFTER)
                assert now == (DEAD if suspects else SUSPECT)
                dropped.add(pk)
                row.state, row.losses, row.token, row.is_due = now, losses, "", True
        assert len(got | dropped) == min(limit, len(eligible))
        for each in claimed:
            row = self.model.rows[each.lease.id]
            row.losses += bool(row.token)
            assert each.event.id == row.event
            assert (each.lease.attempts, each.lease.losses) == (row.attempts, row.losses)
            row.token, row.is_due = each.lease.token, False
        self._hold(tuple(each.lease for each in claimed))

    @rule()
    def let_all_leases_end(self) -> None:
        Delivery.objects.using(self.alias).exclude(lease="").update(due_ms=0)
        for row in self.model.rows.values():
            row.is_due = row.is_due or bool(row.token)

    @rule()
    def let_time_pass(self) -> None:
        Delivery.objects.using(self.alias).update(due_ms=0)
        for row in self.model.rows.values():
            row.is_due = True

    # What became of it; with leases that may be long lost

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        chosen = self._some(data)
        store.finish(chosen)
        for lease in chosen:
            if self._is_mine(lease):
                del self.model.rows[lease.id]

    @rule(data=st.data(), is_dead=st.booleans(), is_due=st.booleans(), losses=st.integers(0, 1))
    def set_back(self, data: st.DataObject, is_dead: bool, is_due: bool, losses: int) -> None:
        for lease in self._some(data):
            attempts = lease.attempts + 1
            in_s = 0.0 if is_due else LATER_S
            store.set_back([Setback(lease, attempts, 0, in_s, "no", is_dead, losses)])
            if self._is_mine(lease):
                row = self.model.rows[lease.id]
                row.state, row.attempts = (DEAD if is_dead else OWED), attempts
                row.losses, row.token, row.is_due = losses, "", is_due

    @rule(data=st.data(), is_due=st.booleans())
    def give_back(self, data: st.DataObject, is_due: bool) -> None:
        for lease in self._some(data):
            store.give_back([(lease, 0.0 if is_due else LATER_S)])
            if self._is_mine(lease):
                row = self.model.rows[lease.id]
                row.token, row.is_due = "", is_due

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        chosen = self._some(data)
        assert store.renew(chosen) == {lease.id for lease in chosen if not self._is_mine(lease)}
        for lease in chosen:
            if self._is_mine(lease):
                self.model.rows[lease.id].is_due = False

    @rule(data=st.data(), commits=st.booleans())
    def take(self, data: st.DataObject, commits: bool) -> None:
        for lease in self._some(data)[:1]:
            is_mine = self._is_mine(lease)
            try:
                with transaction.atomic(using=self.alias):
                    store.take([lease])
                    transaction.set_rollback(not commits, using=self.alias)
                assert is_mine
            except LeaseLost:
                assert not is_mine
            else:
                if commits:
                    del self.model.rows[lease.id]
                    store.sweep([lease.event_pk])

    # The rows are the model's

    @invariant()
    def nothing_else_is_there(self) -> None:
        rows = Delivery.objects.using(self.alias)
        with connections[self.alias].cursor() as cursor:
            cursor.execute(f"SELECT {tables_now(self.alias)}")
            (now,) = cursor.fetchone()
        found = {
            row.pk: (row.target, row.state, row.attempts, row.losses, row.lease, row.due_ms <= now)
            for row in rows
        }
        assert found == {
            pk: (row.target, row.state, row.attempts, row.losses, row.token, row.is_due)
            for pk, row in self.model.rows.items()
        }
        events = StoredEvent.objects.using(self.alias).values_list("event_id", flat=True)
        assert sorted(events) == sorted({row.event for row in self.model.rows.values()})

    def _hold(self, leases: tuple[Lease | None, ...]) -> None:
        self.leases = [*self.leases, *(lease for lease in leases if lease is not None)][-12:]

    def _is_mine(self, lease: Lease) -> bool:
        row = self.model.rows.get(lease.id)
        return row is not None and row.token == lease.token

    def _some(self, data: Any) -> list[Lease]:
        if not self.leases:
            return []
        chosen: list[Lease] = data.draw(
            st.lists(st.sampled_from(self.leases), max_size=3, unique_by=lambda lease: lease.id)
        )
        return chosen


def tables_now(alias: str) -> str:
    from aevents.rows import now_ms

    return now_ms(connections[alias]).sql


def test_the_store_does_what_the_model_says(store: str) -> None:
    machine = type("Machine", (StoreMachine,), {"alias": store})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    connections[store].close()
