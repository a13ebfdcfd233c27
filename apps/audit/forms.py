"""The auditor's search, as filters in the URL."""

import django_filters
from django import forms
from django.db.models import Q, QuerySet

from apps.audit.models import Event

_MOMENT = forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")


class EventFilter(django_filters.FilterSet):
    """Who, what, on which object, from when to when; times are in the reader's own zone."""

    who = django_filters.CharFilter(method="by_name", label="Who", max_length=150)
    what = django_filters.CharFilter(method="by_verb", label="What", max_length=60)
    object = django_filters.CharFilter(method="by_object", label="Object", max_length=170)
    since = django_filters.DateTimeFilter(field_name="at", lookup_expr="gte", label="From", widget=_MOMENT)
    until = django_filters.DateTimeFilter(field_name="at", lookup_expr="lte", label="To", widget=_MOMENT)
    refused = django_filters.BooleanFilter(method="by_refusal", label="Refused only", widget=forms.CheckboxInput)

    class Meta:
        model = Event
        fields: list[str] = []

    def by_name(self, queryset: QuerySet[Event], _name: str, value: str) -> QuerySet[Event]:
        """A part of the name, or a role in full."""
        return queryset.filter(Q(name__icontains=value) | Q(role=value.lower().replace(" ", "_")))

    def by_verb(self, queryset: QuerySet[Event], _name: str, value: str) -> QuerySet[Event]:
        """A part of the verb: `alert.read`, `alert`, `sign in`."""
        return queryset.filter(verb__icontains=value.strip().replace(" ", "_"))

    def by_object(self, queryset: QuerySet[Event], _name: str, value: str) -> QuerySet[Event]:
        """`alert 8812`, a type, or the beginning of an id."""
        kind, _space, key = value.strip().rpartition(" ")
        if kind:
            return queryset.filter(object_type=kind.lower().replace(" ", "_"), object_id__startswith=key)
        return queryset.filter(Q(object_type=key.lower()) | Q(object_id__startswith=key))

    def by_refusal(self, queryset: QuerySet[Event], _name: str, value: bool | None) -> QuerySet[Event]:
        """Only what was refused; unticked: everything."""
        return queryset.filter(allowed=False) if value else queryset
