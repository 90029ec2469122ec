"""Formatting only: numbers, shares, times, icons and the paths of small charts. Undefined is a dash."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeGuard
from urllib.parse import quote

from django import template
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import Truncator

from browser.definitions import address
from browser.figures import ordinal
from sae_backend.models import SaeImport

register = template.Library()
THIN = "\N{NARROW NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EM DASH}"

ICONS: dict[str, str] = json.loads((Path(__file__).parent / "icons.json").read_text())
# A latent's or a run's status: (class, icon). A glyph and a word, never colour alone.
STATUSES = {
    "alive": ("ok", "alive"),
    "rare": ("rare", "rare"),
    "dense": ("warn", "dense"),
    "dead": ("dead", "dead"),
    "ready": ("ok", "done"),
    "live": ("ok", "done"),
    "retired": ("wait", "done"),
    "queued": ("wait", "waiting"),
    "computing": ("run", "running"),
    "loading": ("run", "running"),
    "sealed": ("run", "running"),
    "running": ("run", "running"),
    "stalled": ("warn", "warning"),
    "failed": ("err", "cross"),
    "cancelled": ("wait", "stop"),
    "dropped": ("wait", "dead"),
    "receiving": ("wait", "waiting"),
    "checking": ("run", "running"),
    "waiting": ("warn", "waiting"),
    "done": ("ok", "done"),
}

# The main places: their names for reverse(), and for people, and of the pages that belong to them.
PLACES = (
    ("home", "SAEs", ()),
    ("compare", "Compare", ()),
    ("lm_list", "Models", ("lm_detail",)),
    ("dataset_list", "Data sets", ("dataset_detail",)),
    ("run_list", "Jobs", ("run_detail",)),
    ("upload", "Upload", ("import_detail",)),
)


def _defined(value: float | str | None) -> TypeGuard[float]:
    """Whether there is a number; a template gives "" for a figure that a run's summary lacks."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _signed(text: str) -> str:
    """A true minus, and none before what rounds to zero."""
    if not text.startswith("-"):
        return text
    return text.replace("-", MINUS if text.strip("-0.") else "", 1)


@register.simple_tag
@lru_cache
def icon(name: str, css: str = "") -> SafeString:
    """A 16-unit line drawing that takes the colour of its text."""
    drawing = '<svg class="{}" viewBox="0 0 16 16" aria-hidden="true">{}</svg>'
    return format_html(drawing, f"ic {css}".rstrip(), mark_safe(ICONS[name]))


@register.simple_tag(takes_context=True)
def nav_links(context: template.Context) -> SafeString:
    """The main places of the site; the one that is open, or holds the page that is, is marked."""
    match = getattr(context.get("request"), "resolver_match", None)  # a page of an error may have neither
    return _nav(getattr(match, "url_name", None) or "")


@lru_cache
def _nav(here: str) -> SafeString:
    marks = {True: ' aria-current="page"', False: ' aria-current="true"'}
    return format_html_join(
        "",
        '<a href="{}"{}>{}</a>',
        (
            (reverse(place), mark_safe(marks[here == place]) if here in (place, *within) else "", name)
            for place, name, within in PLACES
        ),
    )


@register.simple_tag(takes_context=True)
def site(context: template.Context) -> str:
    """Scheme and host by which this site was asked."""
    root: str = context["request"].build_absolute_uri("/")
    return root[:-1]


@register.simple_tag(takes_context=True)
def who(context: template.Context, css: str = "") -> str:
    """Whose account it is, as a link to that, or one to log in and come back."""
    request, user = context.get("request"), context.get("user")
    here = getattr(getattr(request, "resolver_match", None), "url_name", None)
    if user and user.is_authenticated:
        return _account(user.get_username(), css, here == "account")
    if here == "login":
        return ""
    back = f"?next={quote(request.get_full_path())}" if request and request.path != "/" else ""
    return SafeString(f"<a{_class(css)} href=\"{_place('login')}{back}\">Log in</a>")


def _account(name: str, css: str, here: bool) -> SafeString:
    inside = format_html('<span class="vh">Account </span>{}', Truncator(name).chars(20))
    current = ' aria-current="page"' if here else ""
    return SafeString(f"<a{_class(css)} href=\"{_place('account')}\"{current}>{inside}</a>")


@cache
def _place(name: str) -> str:
    return reverse(name)


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""


@register.filter
def defined(figure: str) -> str:
    """The address of a figure's definition."""
    return address(figure)


@register.simple_tag
def status(name: str, text: str = "") -> SafeString:
    """A status as glyph and word."""
    css, glyph = STATUSES.get(name, ("wait", "todo"))
    drawn = icon(glyph, "spin" if glyph == "running" else "")
    return format_html('<span class="st {}">{}{}</span>', css, drawn, text or name.capitalize())


@register.simple_tag
def import_status(row: SaeImport) -> SafeString:
    """What became of an import: one that waits could not be read, has something to correct, or leaves a choice."""
    if row.state != SaeImport.State.WAITING:
        return status(row.state)
    if not row.error:
        return status("waiting", "Checked, waits for a choice")
    return status("stalled", "Needs a correction") if row.report.get("detected") else status("failed", "Not readable")


@register.filter
def layer(hook_name: str) -> str:
    """L6 for a hook point of block 6, nothing for one outside the blocks."""
    parts = hook_name.split(".")
    return f"L{parts[1]}" if parts[0] == "blocks" and parts[1:] and parts[1].isdecimal() else ""


@register.filter
def thousands(value: float | None) -> str:
    """A whole number with thin spaces: 24 576."""
    return _signed(f"{round(value):,}".replace(",", THIN)) if _defined(value) else DASH


@register.filter
def density(value: float | None) -> str:
    """A share of tokens so that it can be pasted into code: 2.1e-4, and 0 for none."""
    if not _defined(value):
        return DASH
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


@register.filter
def fixed(value: float | None, places: int = 2) -> str:
    """A number with so many decimals and a true minus."""
    return _signed(f"{value:.{int(places)}f}") if _defined(value) else DASH


@register.filter
def compact(value: float | None) -> str:
    """Three significant digits: 48.2, 0.105, 1 204; 6.3e4 above 9 999 and 1.2e-4 below a thousandth."""
    if not _defined(value):
        return DASH
    size = abs(value)
    if size and (size >= 9999.5 or size < 1e-3):
        return _signed(density(value))
    places = 0 if size >= 999.5 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    return _signed(f"{value:,.{places}f}".replace(",", THIN))


@register.filter
def percent(share: float | None, places: int = 1) -> str:
    """A share of 1 as per cent: 97.9 %."""
    return f"{_signed(f'{100 * share:.{int(places)}f}')}{THIN}%" if _defined(share) else DASH


@register.filter
def count(value: float | None) -> str:
    """A large count in words' length: 850, 24.6 k, 10.0 M, 1.2 B."""
    if not _defined(value):
        return DASH
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}{THIN}{unit}"
    return thousands(value)


@register.filter
def speed(rate: float | None, unit: str) -> str:
    """Items a second in two significant digits, as a measured rate deserves: 62 k tokens/s, 0.8 latents/s."""
    if not _defined(rate) or rate <= 0:
        return DASH
    rounded = float(f"{rate:.2g}")
    for least, size, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if rounded >= least:
            return f"{rounded / size:g}{THIN}{letter} {unit}/s"
    return f"{thousands(rounded) if rounded >= 10 else f'{rounded:g}'} {unit}/s"


@register.filter
def sentence(text: str) -> str:
    """A message with its first letter large, unless it begins with a name, such as a file's or a repository's."""
    first, _, rest = text.partition(" ")
    return f"{first.capitalize()} {rest}" if first.isalpha() and first.islower() and rest else text


@register.filter
def nth(n: int) -> str:
    """1st, 2nd, 3rd, 11th."""
    return ordinal(n)


@register.filter
def styled(value: float | None, style: str) -> str:
    """A statistic in the style that its column names."""
    return {"density": density, "fixed": fixed, "thousands": thousands}.get(style, compact)(value)


@register.filter
def duration(seconds: float | None) -> str:
    """A stretch of time a person can compare: 0.4 s, 12 s, 3:05, 1 h 20."""
    if not _defined(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


@register.filter
def remaining(seconds: float | None) -> str:
    """Time left, rounded as an estimate deserves: 40 s, 16 min, 2.5 h."""
    if not _defined(seconds):
        return ""
    if seconds < 55:
        return f"{max(5, 5 * math.ceil(seconds / 5))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@register.filter
def day(moment: datetime | None) -> str:
    """The day without the year when it is this year's: 18 Nov, 3 Feb 2024; "today" is said."""
    if moment is None:
        return DASH
    local, today = timezone.localtime(moment), timezone.localdate()
    if local.date() == today:
        return "today"
    return f"{local.day} {local:%b}" + ("" if local.year == today.year else f" {local.year}")


@register.filter
def clock(moment: datetime | None) -> str:
    """Hours, minutes, seconds, in UTC as logs have them."""
    return DASH if moment is None else f"{moment:%H:%M:%S}"


@register.filter
def ago(moment: datetime | None) -> str:
    """How long ago, in one unit."""
    if moment is None:
        return DASH
    seconds = (timezone.now() - moment).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


@register.filter
def since(moment: datetime | None) -> str:
    """How long it has been so: 3:05."""
    return DASH if moment is None else duration(max(0.0, (timezone.now() - moment).total_seconds()))


@register.filter
def log_share(value: float | None, decades: int = 7) -> str:
    """Where a density lies on a logarithmic bar of so many decades, in per cent of its width."""
    if not _defined(value) or value <= 0:
        return "0"
    return f"{100 * min(1.0, max(0.0, 1 + math.log10(value) / int(decades))):.0f}"


@register.filter
def share(value: float | None, whole: float) -> str:
    """Per cent of a whole for a style attribute, clamped to 0 … 100, always with a dot."""
    if not _defined(value) or not whole:
        return "0"
    return f"{100 * min(1.0, max(0.0, abs(value) / whole)):.4g}"


@register.filter
def bars(heights: Iterable[float], gap: float = 0.1) -> str:
    """The path of a bar chart in a 100 × 100 box, the tallest bar as high as the box."""
    values: Sequence[float] = list(heights)
    if not values or not max(values):
        return ""
    width, top = 100 / len(values), max(values)
    drawn = width * (1 - float(gap))
    parts = [(i * width, 100 * v / top) for i, v in enumerate(values) if v > 0]
    return "".join(f"M{x:.2f} 100v-{h:.1f}h{drawn:.2f}v{h:.1f}z" for x, h in parts)
