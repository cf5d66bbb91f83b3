"""The pages for whoever is on call: what is owed, to whom and why still, and what a person may do about it.

All is read-only but for the actions. It reads the `STORE` database, whatever the routers say.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.core.paginator import Page, Paginator
from django.db import DatabaseError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html

from aevents import outage, remedies, tables
from aevents.columns import DeliveryColumns, EventColumns, PauseColumns, Seen
from aevents.filters import (
    DeliveryAgeFilter,
    DeliveryTypeFilter,
    DirectionFilter,
    EventAgeFilter,
    EventTypeFilter,
    StateFilter,
    TargetFilter,
)
from aevents.models import Delivery, Pause, StoredEvent


class NarrowPaginator(Paginator):  # type: ignore[type-arg]  # a parameter of the stubs alone
    """Finds a page's keys first and reads those rows only: no database sorts what only the page needs."""

    def page(self, number: int | str) -> Page[Any]:
        number = self.validate_number(number)
        rows: Any = self.object_list
        start = (number - 1) * self.per_page
        keys = list(rows.values_list("pk", flat=True)[start : start + self.per_page])
        return Page(rows.filter(pk__in=keys), number, self)


class StoreAdmin(Seen, admin.ModelAdmin):  # type: ignore[type-arg]  # the stubs' parameters are for checkers only
    """A table of the store, with its lists kept quick where there are millions of rows."""

    list_per_page = 50
    ordering = ("-pk",)
    paginator = NarrowPaginator
    show_facets = admin.ShowFacets.NEVER  # it counts through the whole table, once for each choice
    show_full_result_count = False
    sortable_by: ClassVar[tuple[str, ...]] = ()
    event_id_field: ClassVar[str] = ""

    class Media:
        css: ClassVar = {"all": ["aevents/admin.css"]}

    def may(self, request: HttpRequest, permission: str) -> bool:
        """Tell whether this user has a permission of aevents."""
        user: Any = request.user
        return bool(user.has_perm(f"aevents.{permission}"))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        # Not by `search_fields`, whose exact search takes no notice of case and so of no index.
        term = search_term.strip()
        return (queryset.filter(**{self.event_id_field: term}) if term else queryset), False

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        # By the lookups that Django allows one could feel one's way to a payload.
        return any(lookup == getattr(each, "parameter_name", None) for each in self.list_filter)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if reason := tables.why_not():
            text = f"Nothing is stored: {reason}. Name a database there to keep what cannot be delivered."
            self.message_user(request, text, messages.WARNING)
        try:
            return super().changelist_view(request, extra_context)
        except DatabaseError as error:
            if not outage.is_missing_tables(error):
                raise
            text = f"In the database {tables.connection().alias!r}, {outage.explain(error)}."
            self.message_user(request, text, messages.ERROR)
            return HttpResponseRedirect(reverse("admin:index", current_app=self.admin_site.name))


@admin.register(Delivery)
class DeliveryAdmin(DeliveryColumns, StoreAdmin):
    """What is owed to whom, and what a person may do about it."""

    list_display = (
        "event_and_id", "way_and_target", "standing_and_attempts", "short_error", "due", "stored",
    )  # fmt: skip
    list_filter = (StateFilter, DirectionFilter, TargetFilter, DeliveryTypeFilter, DeliveryAgeFilter)
    search_fields = ("event__event_id__exact",)
    search_help_text = "An event id, in full."
    sortable_by = ("stored",)
    event_id_field = "event__event_id"
    actions = ("retry", "replay", "discard", "pause")
    fieldsets = (
        (None, {"fields": ("event_type", "event_link", "way", "target", "key", "stored")}),
        ("How it stands", {"fields": ("standing", "due", "last_error", "changed")}),
        ("Counts", {"fields": ("attempts", "refusals", "losses")}),
    )
    readonly_fields = (
        "event_type", "event_link", "way", "target", "key", "stored",
        "standing", "due", "last_error", "changed",
    )  # fmt: skip

    @admin.display(description="event")
    def event_link(self, row: Delivery) -> str:
        url = reverse(
            "admin:aevents_storedevent_change", args=(row.event.pk,), current_app=self.admin_site.name
        )
        return format_html('<a href="{}">{}</a>', url, self.event_id(row))

    def has_remedy_permission(self, request: HttpRequest) -> bool:
        """Tell whether this user may let deliveries be tried."""
        return self.may(request, "change_delivery")

    def has_discard_permission(self, request: HttpRequest) -> bool:
        """Tell whether this user may remove deliveries."""
        return self.may(request, "delete_delivery")

    def has_pause_permission(self, request: HttpRequest) -> bool:
        """Tell whether this user may pause targets."""
        return self.may(request, "add_pause")

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        row = kwargs.get("obj")
        possible = remedies.possible(row) if row else ()
        allowed = self.get_actions(request)
        if row:
            context["subtitle"] = f"{self.event_type(row)} {self.way_and_target(row)}"
        context["remedies"] = [(name, name.capitalize()) for name in possible if name in allowed]
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.action(description="Retry: due now", permissions=["remedy"])
    def retry(self, request: HttpRequest, rows: QuerySet[Delivery]) -> None:
        """Let what waits for its next try be due now."""
        remedies.apply(self, request, rows, remedies.RETRY)

    @admin.action(description="Replay: owed again, with the same id", permissions=["remedy"])
    def replay(self, request: HttpRequest, rows: QuerySet[Delivery]) -> None:
        """Let what is dead or done be owed again."""
        remedies.apply(self, request, rows, remedies.REPLAY)

    @admin.action(description="Discard: remove for good", permissions=["discard"])
    def discard(self, request: HttpRequest, rows: QuerySet[Delivery]) -> HttpResponse | None:
        """Remove what is owed or dead, once the person has confirmed it."""
        return remedies.discard(self, request, rows)

    @admin.action(description="Pause the targets of these", permissions=["pause"])
    def pause(self, request: HttpRequest, rows: QuerySet[Delivery]) -> None:
        """Let nothing stored be tried for the targets of these deliveries."""
        remedies.pause(self, request, rows)


class DeliveryInline(DeliveryColumns, admin.TabularInline):  # type: ignore[type-arg]  # the same
    """To whom an event is owed."""

    model = Delivery
    extra = 0
    can_delete = False
    show_change_link = True
    fields = readonly_fields = ("target", "standing", "attempts", "due", "last_error")


@admin.register(StoredEvent)
class EventAdmin(EventColumns, StoreAdmin):
    """The events, with their payloads for those who may see them."""

    list_display = (
        "event_and_id", "way", "source_text", "key_text", "owed", "dead", "emitted", "stored",
    )  # fmt: skip
    list_filter = (DirectionFilter, EventTypeFilter, EventAgeFilter)
    search_fields = ("event_id__exact",)
    search_help_text = "An event id, in full."
    sortable_by = ("stored",)
    event_id_field = "event_id"
    actions = ("erase",)
    inlines = (DeliveryInline,)
    readonly_fields = (
        "type_text", "id_text", "way", "source_text", "key_text", "emitted", "stored",
        "payload_text", "payload_hidden", "cause_text", "correlation_text", "hops", "trace_text",
    )  # fmt: skip

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        payload = "payload_text" if self.may(request, "view_payload") else "payload_hidden"
        return (
            (None, {"fields": self.readonly_fields[:7]}),
            ("Payload", {"fields": (payload,)}),
            ("Chain", {"fields": self.readonly_fields[9:]}),
        )

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if row := kwargs.get("obj"):
            context["subtitle"] = f"{self.type_text(row)} {self.id_text(row)}"
        return super().render_change_form(request, context, *args, **kwargs)

    def has_erase_permission(self, request: HttpRequest) -> bool:
        """Tell whether this user may erase payloads."""
        return self.may(request, "delete_storedevent")

    @admin.action(description="Erase the payload, and discard what is owed of it", permissions=["erase"])
    def erase(self, request: HttpRequest, rows: QuerySet[StoredEvent]) -> HttpResponse | None:
        """Erase the payloads, once the person has confirmed it."""
        return remedies.erase(self, request, rows)


@admin.register(Pause)
class PauseAdmin(PauseColumns, StoreAdmin):
    """The targets that a person has paused."""

    list_display = ("target", "way", "since")
    list_display_links = None
    list_filter = (DirectionFilter,)
    actions = ("resume",)

    def has_resume_permission(self, request: HttpRequest) -> bool:
        """Tell whether this user may end a pause."""
        return self.may(request, "delete_pause")

    @admin.action(description="Resume: let what is owed be tried again", permissions=["resume"])
    def resume(self, request: HttpRequest, rows: QuerySet[Pause]) -> None:
        """Let what is owed to these targets be tried again."""
        remedies.resume(self, request, rows)
