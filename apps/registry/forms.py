"""Forms of the registry."""

from django import forms


class PromoteForm(forms.Form):
    """Why a version is promoted; the note goes into its history."""

    note = forms.CharField(
        max_length=500,
        required=False,
        label="Why",
        help_text="Shown in the history and in the audit trail.",
        widget=forms.TextInput(attrs={"autofocus": True, "placeholder": "better average precision on the last week"}),
    )
