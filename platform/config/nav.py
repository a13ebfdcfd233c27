"""Navigation: which lists exist, in which half, with which key and count; who sees them is read off the views."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings
from django.http import HttpRequest
from django.urls import resolve, reverse

from apps.fraud import api as fraud
from apps.radiology import api as radiology
from apps.training import api as training


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One list of the rail. `count` is the key of its half's queue_counts, `query` a query string that narrows it.

    `roles` narrows who sees it further than the view does; None leaves it to the view.
    """

    title: str
    name: str
    key: str = ""
    count: str = ""
    query: str = ""
    roles: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Half:
    """One half of the product: its groups of lists (title, items), its counts and where its search goes."""

    title: str
    groups: tuple[tuple[str, tuple[Item, ...]], ...]
    counts: Callable[[], dict[str, int]] | None = None
    search: str = ""
    search_hint: str = ""


HALVES = (
    Half(
        title="Fraud",
        groups=(
            (
                "",
                (
                    Item(title="Queue", name="fraud:queue", key="q", count="open"),
                    Item(title="Mine", name="fraud:mine", key="m", count="mine"),
                    Item(title="Closed today", name="fraud:closed", key="c", count="closed"),
                ),
            ),
        ),
        counts=fraud.queue_counts,
        search="fraud:search",
        search_hint="Search card, terminal, alert",
    ),
    Half(
        title="Radiology",
        groups=(
            ("", (Item(title="Reading list", name="radiology:reading_list", key="r", count="open"),)),
            (
                "Batches",
                (
                    Item(title="Upload", name="radiology:upload", key="u"),
                    Item(title="Quarantine", name="radiology:quarantine", key="x", count="quarantine"),
                ),
            ),
        ),
        counts=radiology.queue_counts,
        search="radiology:search",
        search_hint="Search patient, study, report",
    ),
    Half(
        title="Training",
        groups=(
            (
                "",
                (
                    Item(title="Runs", name="training:run_list", key="t", count="open"),
                    Item(title="Models", name="registry:model_list", key="m"),
                ),
            ),
        ),
        counts=training.queue_counts,
    ),
    Half(title="Audit", groups=(("", (Item(title="Events", name="audit:search", key="a"),)),)),
    Half(
        title="API",
        groups=(
            (
                "",
                (
                    Item(title="Keys", name="accounts:profile", key="k", roles=("integrator",)),
                    Item(title="Reference", name="api-v1:openapi-view", key="d", roles=("integrator",)),
                ),
            ),
        ),
    ),
)


def context(request: HttpRequest) -> dict[str, object]:
    """Context processor: `nav` (halves, groups of the current half, search) and `environment_name`."""
    base: dict[str, object] = {"environment_name": settings.ENVIRONMENT_NAME}
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return base
    return base | {"nav": _Nav(request=request, role=user.role)}


class _Nav:
    """What the bar and the rail show; lazy, so that fragments without a frame cost no queries."""

    def __init__(self, *, request: HttpRequest, role: str) -> None:
        self._path = request.path
        self._query = request.GET.urlencode()
        self._visible = [(half, groups) for half in HALVES if (groups := _visible(half, role))]

    @property
    def halves(self) -> list[dict[str, object]]:
        current = self._current()
        return [
            {"title": half.title, "url": groups[0][1][0][1], "current": current is not None and half is current[0]}
            for half, groups in self._visible
        ]

    @property
    def groups(self) -> list[dict[str, object]]:
        current = self._current() or (self._visible[0] if self._visible else None)
        if current is None:
            return []
        half, groups = current
        counts = half.counts() if half.counts else {}
        best = self._best(groups)
        return [
            {
                "title": title,
                "items": [
                    {
                        "title": item.title,
                        "url": url + (f"?{item.query}" if item.query else ""),
                        "key": item.key,
                        "count": counts.get(item.count) if item.count else None,
                        "current": item is best,
                    }
                    for item, url in items
                ],
            }
            for title, items in groups
        ]

    @property
    def search_url(self) -> str:
        current = self._current()
        return reverse(current[0].search) if current and current[0].search else ""

    @property
    def search_hint(self) -> str:
        current = self._current()
        return current[0].search_hint if current else ""

    def _current(self) -> "_Shown | None":
        """The half whose lists share the longest beginning with the page's path."""
        best, length = None, 1
        for half, groups in self._visible:
            for _title, items in groups:
                for _item, url in items:
                    root = "/" + url.strip("/").split("/")[0] + "/"
                    if self._path.startswith(root) and len(root) > length:
                        best, length = (half, groups), len(root)
        return best

    def _best(self, groups: "_Groups") -> Item | None:
        """The list that the page belongs to: same query first, then the longest path."""
        items = [(item, url) for _title, items in groups for item, url in items if self._path.startswith(url)]
        if not items:
            return None
        return max(items, key=lambda pair: (len(pair[1]), pair[0].query == self._query, not pair[0].query))[0]


_Groups = tuple[tuple[str, tuple[tuple[Item, str], ...]], ...]
_Shown = tuple[Half, _Groups]


@lru_cache(maxsize=64)
def _visible(half: Half, role: str) -> _Groups:
    """The groups with the lists that a role may open, each with its URL."""
    shown = []
    for title, items in half.groups:
        pairs = tuple((item, url) for item in items if (url := _url_for(item, role)))
        if pairs:
            shown.append((title, pairs))
    return tuple(shown)


def _url_for(item: Item, role: str) -> str:
    url = reverse(item.name)
    roles = item.roles or getattr(resolve(url).func, "roles", None)
    return url if roles is None or role in roles else ""
