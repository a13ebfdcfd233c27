"""Forms of radiology: an upload without JavaScript, and the signature."""

from typing import Any

from django import forms

from apps.radiology.models import Priority


class ManyFilesInput(forms.ClearableFileInput):
    """A file input that takes many files."""

    allow_multiple_selected = True


class ManyFilesField(forms.FileField):
    """A list of uploaded files."""

    def clean(self, data: Any, initial: Any = None) -> list[Any]:
        listed = data if isinstance(data, list | tuple) else [data]
        return [super(ManyFilesField, self).clean(one, initial) for one in listed]


class UploadForm(forms.Form):
    """Files or zips, and how urgent their studies are."""

    files = ManyFilesField(  # type: ignore[assignment]  # a form has its own files
        widget=ManyFilesInput(attrs={"multiple": True, "aria-label": "Files or a zip to upload"}),
        label="Files or a zip",
        allow_empty_file=True,
    )
    priority = forms.TypedChoiceField(choices=Priority.choices, coerce=int, initial=Priority.ROUTINE)


class SearchForm(forms.Form):
    """The words of the search box."""

    q = forms.CharField(required=False, max_length=100, label="Search")

    def text(self) -> str:
        """What to look for: the words with single spaces, nothing when they were refused."""
        return " ".join(self.cleaned_data["q"].split()) if self.is_valid() else ""


class SignForm(forms.Form):
    """The password again."""

    version = forms.IntegerField(min_value=1)
    password = forms.CharField(widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}), strip=False)
