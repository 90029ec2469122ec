"""Long lists, of latents and of what is on a latent's page: a template takes ten times as long over so many values.

What people wrote, the names of documents, is escaped here; the markup of tokens comes escaped from browser.tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from html import escape
from typing import Any

from django import template
from django.urls import reverse
from django.utils.safestring import SafeString

from browser.axes import Tick
from browser.charts import Band, Bars
from browser.contexts import Drawn, Row
from browser.figures import Figure
from browser.queries.columns import BY_NAME, COLUMNS, INDEX, Column
from browser.queries.latent_near import Misses, Neighbour
from browser.queries.latent_page import Choice, Contexts, Effect, Tab
from browser.queries.logit_meaning import SetEffect
from browser.templatetags.latent_tags import (
    bars,
    compact,
    defined,
    density,
    fixed,
    log_share,
    status,
    styled,
    thousands,
)
from sae_backend.models import STATUS_NAMES

register = template.Library()


@register.simple_tag
def context_rows(contexts: Contexts | Misses) -> SafeString:
    """Every row of the open interval, or of where a latent came closest."""
    return SafeString("".join(_context(row, drawn, contexts.decimals) for row, drawn in contexts.rows))


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
def strip_entries(figures: Iterable[Figure], bound: float | None) -> SafeString:
    """Figures with their place among the other latents' as a mark; `bound` is of a dead latent's density."""
    return SafeString("".join(_strip_entry(f, bound) for f in figures))


def _strip_entry(f: Figure, bound: float | None) -> str:
    value = density(f.value) if f.column == "density" else compact(f.value)
    below = f"<small>&lt; {density(bound)}</small>" if f.column == "density" and bound else ""
    mark = (
        ""
        if f.percentile is None
        else f'<dd class="pc" style="--p:{f.percentile}" aria-hidden="true"><i></i></dd>'
    )
    return f"<div><dt>{_term(f)}</dt><dd>{value}{below}{_percentile(f)}</dd>{mark}</div>"


@register.simple_tag
def figure_entries(figures: Iterable[Figure]) -> SafeString:
    """Terms and values of a list of figures."""
    return SafeString("".join(map(_figure, figures)))


def _figure(f: Figure) -> str:
    says = f"<small>{escape(f.says)}</small>" if f.says else ""
    return f"<dt>{_term(f)}{says}</dt><dd>{compact(f.value)}{_percentile(f, ' ')}</dd>"


def _term(f: Figure) -> str:
    return _definition(f.column, f.means, f.name)


@lru_cache
def _definition(column: str, means: str, name: str) -> str:
    return f'<a class="def" href="{escape(defined(column))}" title="{escape(means)}">{name}</a>'


def _percentile(f: Figure, space: str = "") -> str:
    return "" if f.percentile is None else f'{space}<i class="pp" title="{f.rank}">p{f.percentile}</i>'


_TABS = (
    ("top", "Top", ""),
    ("rnd", "Random", ""),
    ("low", "Near threshold", ' title="The weakest firings that are kept (n)"'),
)


@register.simple_tag
def tab_links(tabs: Mapping[str, Tab]) -> SafeString:
    """What is no band: the strongest contexts, and other draws that have any."""
    shown = (_tab(tabs[key], name, title) for key, name, title in _TABS if key == "top" or tabs[key].shown)
    return SafeString("".join(shown))


def _tab(tab: Tab, name: str, title: str) -> str:
    return (
        f'<a href="{escape(tab.query)}#contexts" data-int="{tab.key}"{_current(tab.current)}{title}>'
        f'{name} <span class="n">{tab.shown}</span></a>'
    )


@register.simple_tag
def layout_links(layouts: Iterable[Choice]) -> SafeString:
    """The ways in which contexts can be laid out."""
    links = (
        f'<a href="{escape(x.query)}#contexts" data-layout="{x.key}"{_current(x.current)}>{x.name}</a>' for x in layouts
    )
    return SafeString("".join(links))


def _current(yes: bool) -> str:
    return ' aria-current="true"' if yes else ""


@register.simple_tag
def grid_lines(ticks: Iterable[Tick]) -> SafeString:
    """Of an upright axis, within a chart's SVG."""
    return SafeString("".join(f'<line class="gl" x1="0" x2="100" y1="{t.y}" y2="{t.y}"/>' for t in ticks))


@register.simple_tag
def tick_labels(ticks: Iterable[Tick]) -> SafeString:
    """Of an upright axis, beside a chart's SVG."""
    return SafeString("".join(f'<span class="yt" style="--y:{t.at}">{escape(t.text)}</span>' for t in ticks))


@register.simple_tag
def bar_paths(bars: Iterable[Bars]) -> SafeString:
    """Of a histogram, a path a colour."""
    return SafeString("".join(f'<path class="b {b.name}" d="{b.path}"/>' for b in bars))


@register.simple_tag
def band_links(bands: Iterable[tuple[Tab, Band]], decimals: int) -> SafeString:
    """The bands under the histogram, those with contexts as links to them."""
    return SafeString("".join(_band(tab, band, decimals) for tab, band in bands))


def _band(tab: Tab, band: Band, decimals: int) -> str:
    low, high, firings = fixed(band.low, decimals), fixed(band.high, decimals), thousands(band.firings)
    inner = f"<b>{low}–{high}</b> <span>{firings}</span>"
    if not tab.shown:
        return f'<span class="none" title="No firings between {low} and {high}">{inner}</span>'
    title = f"Activation {low} to {high}: {firings} firing{'' if band.firings == 1 else 's'}"
    href = f'href="{escape(tab.query)}#contexts"'
    return f'<a {href} data-int="{tab.key}"{_current(tab.current)} title="{title}">{inner}</a>'


@register.simple_tag
def effect_rows(effects: Iterable[Effect], css: str = "") -> SafeString:
    """Tokens with their logit effects as bars."""
    bar = f"dv {css}".rstrip()
    rows = (
        f'<li>{e.token}<span class="{bar}"><i style="--v:{e.width}"></i></span><span>{e.effect}</span></li>'
        for e in effects
    )
    return SafeString("".join(rows))


@register.simple_tag
def set_rows(sets: Iterable[SetEffect]) -> SafeString:
    """Sets of tokens with the mean logit effect on each, in standard deviations as a bar and in standard errors."""
    return SafeString("".join(map(_set_row, sets)))


def _set_row(e: SetEffect) -> str:
    bar = "dv n" if (e.shift or 0) < 0 else "dv"
    return (
        f'<li><span title="{thousands(e.tokens)} tokens: {escape(e.means)}">{escape(e.name)}</span>'
        f'<span class="{bar}"><i style="--v:{e.width}"></i></span>'
        f"<span>{_signed(e.shift, 2)}</span><span>{_signed(e.z, 0)}</span></li>"
    )


def _signed(value: float | None, places: int) -> str:
    return f"+{fixed(value, places)}" if value and value > 0 else fixed(value, places)


@register.simple_tag
def neighbour_rows(neighbours: Iterable[Neighbour], sae_url: str) -> SafeString:
    """Latents near in some way; what they are strongest on stands in for a label."""
    return SafeString("".join(_neighbour(n, escape(sae_url)) for n in neighbours))


def _neighbour(n: Neighbour, sae_url: str) -> str:
    bar = "dv n" if n.cos < 0 else "dv"
    means = f' title="{n.means}"' if n.means else ""
    tokens = '<span class="mut">dead</span>' if n.density == 0 else n.tokens
    return (
        f'<li><span>{n.cosine}</span><span class="{bar}"><i style="--v:{n.width}"></i></span>'
        f'<a href="{sae_url}/{n.index}"><span class="id">{n.index}</span>{tokens}</a>'
        f"<span{means}>{n.beside}</span><span>{density(n.density)}</span></li>"
    )


@register.simple_tag
def latent_rows(rows: Iterable[Mapping[str, Any]], address: str) -> SafeString:
    """Rows of an SAE's table."""
    sae_url = escape(reverse("sae_detail", args=[address]))
    return SafeString("\n".join(_latent(row, sae_url) for row in rows))


def _latent(row: Mapping[str, Any], sae_url: str) -> str:
    dead = ' class="dead"' if row["status"] == "dead" else ""
    cells = (f'<td class="num {css}">{styled(value, style)}</td>' for value, style, css in row["cells"])
    strongest = "".join(f"{chip} " for chip in row["strongest"]) or "—"
    return (
        f'<tr{dead}><td class="id"><a href="{sae_url}/{row["index"]}">{row["index"]}</a></td>'
        f'<td class="nw toks">{strongest}</td>'
        f'<td class="nw"><span class="hb only-d" style="--v:{log_share(row["density"])}"></span>'
        f'<span class="tn">{density(row["density"])}</span></td>'
        f'<td class="p4">{_spark(row["spark"]) if row["firings"] else "—"}</td>{"".join(cells)}'
        f'<td class="p4 toks">{"".join(row["promoted"]) or "—"}</td>'
        f'<td class="p2">{_statuses()[row["status"]]}</td></tr>'
    )


def _spark(heights: bytes) -> str:
    return (
        '<svg class="spark" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{bars(heights)}" fill="currentColor"/></svg>'
    )


@register.simple_tag
def sort_options(column: str, descending: bool) -> SafeString:
    """Every statistic, largest and smallest first, as options of a form."""
    return _sorts(column, descending)


@lru_cache
def _sorts(column: str, descending: bool) -> SafeString:
    orders = ((c, sign, words) for c in (*COLUMNS, INDEX) for sign, words in (("-", "largest"), ("", "smallest")))
    chosen = f"-{column}" if descending else column
    return SafeString("".join(_option(c, f"{sign}{c.name}", chosen, f", {words} first") for c, sign, words in orders))


@register.simple_tag
def range_options(chosen: str) -> SafeString:
    """Statistics without fields of their own, which a range can be asked of."""
    return _ranges(chosen if chosen in BY_NAME else "")


@lru_cache
def _ranges(chosen: str) -> SafeString:
    ranged = (c for c in (*COLUMNS, INDEX) if c.name not in ("density", "kurtosis"))
    return SafeString("".join(_option(c, c.name, chosen) for c in ranged))


def _option(column: Column, value: str, chosen: str, more: str = "") -> str:
    selected = " selected" if value == chosen else ""
    return f'<option value="{value}" title="{escape(column.means)}"{selected}>{escape(column.label)}{more}</option>'


@cache
def _statuses() -> dict[str, SafeString]:
    return {name: status(name) for name in STATUS_NAMES}
