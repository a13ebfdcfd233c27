"""What a person sends: queue filters in the URL, verdicts, notes, names of views."""

from typing import Any

from django import forms
from django.http import QueryDict

from apps.fraud import rules
from apps.fraud.contracts import QueueFilter
from apps.fraud.models import Verdict

_STATES = ("new", "claimed", "escalated", "reopened")
BANDS = {4: "critical", 3: "high", 2: "medium", 1: "low"}


class QueueForm(forms.Form):
    """The filters of the queue; what does not parse is left out and named in `errors`."""

    band = forms.TypedMultipleChoiceField(required=False, coerce=int, choices=list(BANDS.items()))
    state = forms.ChoiceField(required=False, choices=[("", "any"), *((state, state) for state in _STATES)])
    mine = forms.BooleanField(required=False)
    terminal = forms.CharField(required=False, max_length=40)
    card = forms.CharField(required=False, max_length=40)
    amount_from = forms.DecimalField(required=False, min_value=0, max_value=10**9, decimal_places=2)
    amount_to = forms.DecimalField(required=False, min_value=0, max_value=10**9, decimal_places=2)
    older_than_h = forms.IntegerField(required=False, min_value=0, max_value=10_000)
    q = forms.CharField(required=False, max_length=60)
    offset = forms.IntegerField(required=False, min_value=0, max_value=10**7)

    def wanted(self) -> QueueFilter:
        """The filter that these fields ask for."""
        self.is_valid()
        data: dict[str, Any] = self.cleaned_data
        low, high = data.get("amount_from"), data.get("amount_to")
        return QueueFilter(
            bands=tuple(data.get("band") or ()),
            state=data.get("state") or "",
            mine=bool(data.get("mine")),
            terminal=data.get("terminal") or "",
            card=data.get("card") or "",
            amount_from_cents=None if low is None else int(low * 100),
            amount_to_cents=None if high is None else int(high * 100),
            older_than_h=data.get("older_than_h"),
            text=data.get("q") or "",
        )

    def start(self) -> int:
        """From which row on."""
        self.is_valid()
        return self.cleaned_data.get("offset") or 0


class SearchForm(forms.Form):
    """The words of the search box."""

    q = forms.CharField(required=False, max_length=100, label="Search")

    def text(self) -> str:
        """What to look for: the words with single spaces, nothing when they were refused."""
        return " ".join(self.cleaned_data["q"].split()) if self.is_valid() else ""


class VersionForm(forms.Form):
    """The version of the alert that the person saw."""

    version = forms.IntegerField(min_value=1)


class VerdictForm(VersionForm):
    """A verdict with its reason; the note is kept."""

    verdict = forms.ChoiceField(choices=Verdict.choices)
    reason_code = forms.CharField(required=False, max_length=40)
    note = forms.CharField(required=False, max_length=2000)

    def reason(self) -> str:
        """The chosen reason; the list's values carry their verdict, and no choice means the verdict's first."""
        verdict, chosen = self.cleaned_data["verdict"], self.cleaned_data["reason_code"]
        return chosen.removeprefix(f"{verdict}:") if chosen else rules.REASON_CODES[verdict][0][0]


class NoteForm(forms.Form):
    """A remark."""

    text = forms.CharField(max_length=2000)


class ViewForm(forms.Form):
    """A name for the filters that are set."""

    name = forms.CharField(max_length=40)
    query = forms.CharField(required=False, max_length=500)

    def clean_query(self) -> str:
        """Only what the queue knows, in one order."""
        given = QueryDict(self.cleaned_data["query"])
        kept = QueryDict(mutable=True)
        for name in QueueForm.base_fields:
            if name != "offset" and given.getlist(name):
                kept.setlist(name, given.getlist(name))
        return kept.urlencode()
