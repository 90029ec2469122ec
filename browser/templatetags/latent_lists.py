"""The long lists of a latent's page, written here because a template takes ten times as long over so many values.

What people wrote, the names of documents, is escaped here; the markup of tokens comes escaped from browser.tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

from django import template
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

from browser.contexts import Drawn, Row
from browser.queries.latent_page import Contexts, Effect, Neighbour
from browser.templatetags.latent_tags import density, fixed, thousands

register = template.Library()


@register.simple_tag
def context_rows(contexts: Contexts) -> SafeString:
    """Every row of the open interval."""
    return mark_safe("".join(_context(row, drawn, contexts.decimals) for row, drawn in contexts.rows))


def _context(row: Row, drawn: Drawn, decimals: int) -> str:
    source, query = escape(row.source), escape(row.query)
    place = f"{source}, token {thousands(row.position)}"
    part = "" if drawn.whole else " data-part"
    is_open = " data-open" if row.open else ""
    direction = f' dir="{drawn.direction}"' if drawn.direction else ""
    tools = f'<div class="ca"><span>{place}</span></div>' if row.open else ""
    return (
        f'<li class="ctx" id="c{row.key}" data-first="{drawn.first}" data-length="{drawn.length}"{part}{is_open}>'
        f'<div class="cg"><b>{fixed(row.act, decimals)}</b><span class="dv"><i style="--v:{row.share}"></i></span>'
        f'<span class="cm">{source}</span></div>'
        f'<div class="ct tk"{direction}><span class="pre{drawn.cut_before}"><span class="in">{drawn.before}</span>'
        f'</span><span class="post{drawn.cut_after}">{drawn.after}</span></div>'
        f'<a class="cx" href="{query}#c{row.key}" aria-expanded="{"true" if row.open else "false"}"'
        f' aria-label="Whole context: {place}"></a>{tools}</li>'
    )


@register.simple_tag
def effect_rows(effects: Iterable[Effect], css: str = "") -> SafeString:
    """Tokens with their logit effects as bars."""
    bar = f"dv {css}".rstrip()
    rows = (
        f'<li>{e.token}<span class="{bar}"><i style="--v:{e.width}"></i></span><span>{e.effect}</span></li>'
        for e in effects
    )
    return mark_safe("".join(rows))


@register.simple_tag
def neighbour_rows(neighbours: Iterable[Neighbour], sae_url: str) -> SafeString:
    """Latents of near or opposite direction; what they are strongest on stands in for a label."""
    return mark_safe("".join(_neighbour(n, escape(sae_url)) for n in neighbours))


def _neighbour(n: Neighbour, sae_url: str) -> str:
    bar = "dv n" if n.cos < 0 else "dv"
    tokens = '<span class="mut">dead</span>' if n.density == 0 else n.tokens
    return (
        f'<li><span>{n.cosine}</span><span class="{bar}"><i style="--v:{n.width}"></i></span>'
        f'<a href="{sae_url}/{n.index}"><span class="id">{n.index}</span>{tokens}</a>'
        f'<span title="density">{density(n.density)}</span></li>'
    )
