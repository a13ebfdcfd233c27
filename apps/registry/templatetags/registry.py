"""Words of the registry in templates."""

from django import template
from django.utils.safestring import mark_safe
from markdown_it import MarkdownIt

from apps.registry import rules

register = template.Library()
register.filter("kind_title", rules.kind_title)


@register.filter
def card_html(text: str) -> str:
    """A model card's Markdown as HTML; raw HTML in it is shown as text, and the renderer vets links."""
    return mark_safe(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))
