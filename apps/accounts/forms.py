"""Forms of accounts."""

from django import forms

from apps.accounts import selectors
from apps.accounts.models import User


class ProfileForm(forms.ModelForm):
    """What a person may set for herself."""

    time_zone = forms.ChoiceField(choices=selectors.time_zone_choices, help_text="All times are shown in this zone.")

    class Meta:
        model = User
        fields = ["time_zone", "theme"]


class ApiKeyForm(forms.Form):
    """A new key."""

    name = forms.CharField(max_length=80, label="What will use it", help_text="For instance: payment gateway, staging")
