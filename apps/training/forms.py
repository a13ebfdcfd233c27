"""The form that starts a run."""

from datetime import UTC, datetime, time, timedelta
from typing import Any

from django import forms

from apps.training import rules

_DAY = forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")
WINDOW_DAYS = 90
WINDOW_DAYS_MIN = 7


class RunForm(forms.Form):
    """Recipe, data window, teacher, student, epochs, seed; what does not fit together is told by field."""

    recipe = forms.ChoiceField(
        choices=[(recipe.name, recipe.title) for recipe in rules.RECIPES.values()],
        help_text="What is trained, and how.",
    )
    since = forms.DateField(
        required=False, label="Transactions from", widget=_DAY, help_text="Midnight UTC. Fraud recipes only."
    )
    until = forms.DateField(
        required=False, label="Transactions before", widget=_DAY, help_text="Only labels known by now are used."
    )
    teacher = forms.ChoiceField(help_text="Whom the student learns from.")
    student = forms.ChoiceField(help_text="A larger one is slower to train and to serve.")
    epochs = forms.IntegerField(min_value=1, max_value=50, initial=3)
    seed = forms.IntegerField(min_value=0, max_value=2**31 - 1, initial=0, help_text="Equal seeds give equal weights.")

    def __init__(self, *args: Any, today: datetime, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        recipes = rules.RECIPES.values()
        self._choices("teacher", dict(choice for recipe in recipes for choice in recipe.teachers))
        self._choices("student", dict(choice for recipe in recipes for choice in recipe.students))
        self.fields["until"].initial = today.date() + timedelta(days=1)
        self.fields["since"].initial = today.date() - timedelta(days=WINDOW_DAYS)
        self.fields["epochs"].initial = next(iter(recipes)).epochs

    def clean(self) -> dict[str, object]:
        """Checks that need two fields."""
        cleaned = super().clean() or {}
        recipe = rules.RECIPES.get(cleaned.get("recipe", ""))
        if recipe is None:
            return cleaned
        for name, offered in (("teacher", recipe.teachers), ("student", recipe.students)):
            if name in cleaned and cleaned[name] not in dict(offered):
                words = " or ".join(title for _value, title in offered)
                self.add_error(name, f"“{recipe.title}” takes {words}.")
        if recipe.window:
            self._check_window(cleaned.get("since"), cleaned.get("until"))
        return cleaned

    def run_fields(self) -> dict[str, Any]:
        """What the service takes: recipe, params, seed and, where the recipe has one, the window in UTC."""
        cleaned = self.cleaned_data
        recipe = rules.RECIPES[cleaned["recipe"]]
        params = {name: cleaned[name] for name in recipe.params}
        fields = {"recipe": recipe.name, "params": params, "seed": cleaned["seed"]}
        if recipe.window:
            fields |= {name: datetime.combine(cleaned[name], time(), UTC) for name in ("since", "until")}
        return fields

    def _choices(self, name: str, words: dict[str, str]) -> None:
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = list(words.items())

    def _check_window(self, since: Any, until: Any) -> None:
        for name, value in (("since", since), ("until", until)):
            if value is None and name not in self.errors:
                self.add_error(name, "This recipe learns from transactions: say from when to when.")
        if since is not None and until is not None and until - since < timedelta(days=WINDOW_DAYS_MIN):
            self.add_error("until", f"The window must be at least {WINDOW_DAYS_MIN} days long.")
