"""Parts of pages that an SAE and its run alone decide: drawn once, while the rows behind them are the same."""

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


@register.tag
def kept(parser: Parser, token: Token) -> Kept:
    """{% kept page.resolved figures %} … {% endkept %}: nothing between may depend on who asks, or on the query."""
    _, resolved, name = token.split_contents()
    nodelist = parser.parse(("endkept",))
    parser.delete_first_token()
    return Kept(parser.compile_filter(resolved), name, nodelist)
