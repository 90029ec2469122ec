"""Parts of pages that are drawn once: by an SAE and its run, while the rows behind them are the same, or for good."""

from __future__ import annotations

from django import template
from django.conf import settings
from django.template.base import FilterExpression, NodeList, Parser, Token
from django.template.context import Context
from django.utils.safestring import SafeString

register = template.Library()


class Kept(template.Node):
    """What is between the tags, from `resolved.drawn` where it is there already."""

    def __init__(self, resolved: FilterExpression, name: str, nodelist: NodeList) -> None:
        self.resolved, self.name, self.nodelist = resolved, name, nodelist

    def render(self, context: Context) -> SafeString:
        drawn = {} if settings.DEBUG else self.resolved.resolve(context).drawn
        if self.name not in drawn:
            drawn[self.name] = self.nodelist.render(context)
        return drawn[self.name]


class Once(template.Node):
    """What is between the tags, as it was drawn first; the node lives as long as the process and its templates."""

    drawn: SafeString | None = None

    def __init__(self, nodelist: NodeList) -> None:
        self.nodelist = nodelist

    def render(self, context: Context) -> SafeString:
        if self.drawn is None or settings.DEBUG:
            self.drawn = self.nodelist.render(context)
        return self.drawn


@register.tag
def once(parser: Parser, token: Token) -> Once:
    """{% once %} … {% endonce %}: the site alone decides it, as it does addresses of static files."""
    nodelist = parser.parse(("endonce",))
    parser.delete_first_token()
    return Once(nodelist)


@register.tag
def kept(parser: Parser, token: Token) -> Kept:
    """{% kept page.resolved figures %} … {% endkept %}: nothing between may depend on who asks, or on the query."""
    _, resolved, name = token.split_contents()
    nodelist = parser.parse(("endkept",))
    parser.delete_first_token()
    return Kept(parser.compile_filter(resolved), name, nodelist)
