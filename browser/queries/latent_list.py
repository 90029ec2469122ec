"""Lists of a run's latents: filtered, in the order of any statistic, one page after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.db import OperationalError, connection, transaction
from psycopg import errors as pg

from browser import logit_classes
from browser.errors import TooSlow
from browser.queries import latent_filter
from browser.queries.columns import BY_NAME, COLUMNS, Column
from sae_backend.models import STATUS_NAMES

DEFAULT_SORT = "-max_act"
PAGE = 50
# What a dead latent has not got: a list of dead latents by one of these is by index.
WHERE_IT_FIRES = {"max_act", "mean_act", "std_act", "skewness", "kurtosis", "kurtosis_all", "kurtosis_zero"}
LONGEST_TOKEN = 200  # characters of one that is asked for
COUNTED = 10_000  # matches of a filter are counted up to here
RANGES = {
    "dmin": ("density", ">="),
    "dmax": ("density", "<="),
    "kmin": ("kurtosis", ">="),
    "kmax": ("kurtosis", "<="),
    "from": ("", ">="),  # of the statistic that `by` names
    "to": ("", "<="),
}
PARAMETERS = ("status", "sort", "by", *RANGES, "token", "of", "class", "after")
TOKEN_LISTS = ("strongest", "promoted")  # tokens of a latent that a list can be asked for
_FIELDS = (
    "index",
    "status",
    "firings",
    "nearest_live",
    *(column.name for column in COLUMNS),
    "strongest",
    "promoted",
    "spark",
)
_SELECT = ", ".join(f'"{name}"' for name in _FIELDS)


@dataclass(frozen=True)
class Filter:
    """What an address asks of a list of latents; parameters without sense are only named in `ignored`."""

    status: tuple[str, ...] = ()  # none: every latent that has the statistic sorted by
    ranges: tuple[tuple[str, float], ...] = ()  # (parameter of RANGES, bound)
    sort: str = DEFAULT_SORT
    after: tuple[float | None, int] | None = None  # the last row seen: its statistic (None by index) and index
    ignored: tuple[str, ...] = ()
    by: str = ""  # the statistic that "from" and "to" bound
    token: str = ""  # as it was typed; with_tokens in queries.latents reads it
    of: str = ""  # one of TOKEN_LISTS, or "" for either
    ids: tuple[int, ...] | None = None  # the vocabulary's tokens of that text, once looked up
    logit_class: str = ""  # a name of logit_classes.BY_NAME

    @property
    def column(self) -> Column:
        return BY_NAME[self.sort.lstrip("-")]

    @property
    def descending(self) -> bool:
        return self.sort.startswith("-")

    @property
    def statuses(self) -> tuple[str, ...]:
        """The statuses listed: dead latents only by index, or when they are asked for."""
        return self.status or _statuses_of(self.sort)

    @property
    def narrows(self) -> bool:
        return bool(self.status or self.ranges or self.token or self.logit_class)

    @property
    def bounds(self) -> list[logit_classes.Bound]:
        """Every range asked for, those of the logit class among them."""
        of_class = logit_classes.BY_NAME[self.logit_class].bounds if self.logit_class else ()
        return [*((RANGES[name][0] or self.by, RANGES[name][1], bound) for name, bound in self.ranges), *of_class]

    def bound(self, name: str) -> float | None:
        return dict(self.ranges).get(name)

    def query(self, **changes: Any) -> str:
        """The query string of this list with some fields changed; defaults are left out."""
        new = replace(self, **changes)
        pairs = [("status", ",".join(new.status))] if new.status else []
        pairs += [("by", new.by)] if new.by else []
        pairs += [(name, repr(bound)) for name, bound in new.ranges]
        pairs += [("token", new.token)] if new.token else []
        pairs += [("of", new.of)] if new.of else []
        pairs += [("class", new.logit_class)] if new.logit_class else []
        default = "index" if new.status == ("dead",) else DEFAULT_SORT
        pairs += [("sort", new.sort)] if new.sort != default else []
        pairs += [("after", cursor_text(new.after))] if new.after else []
        return "?" + urlencode(pairs, safe=",") if pairs else ""


def _statuses_of(sort: str) -> tuple[str, ...]:
    return STATUS_NAMES if sort.removeprefix("-") == "index" else STATUS_NAMES[1:]


def read_filter(query: Mapping[str, str], statuses: list[str] | None = None) -> Filter:
    """A filter from a query string; `status` may be given once with commas or several times."""
    ignored: list[str] = []
    given = [s for value in (statuses or [query.get("status", "")]) for s in value.split(",") if s]
    status = tuple(name for name in STATUS_NAMES if name in given)
    ignored += [f"status={name}" for name in given if name not in STATUS_NAMES]
    sort = query.get("sort") or DEFAULT_SORT
    if sort.removeprefix("-") not in BY_NAME:
        ignored.append(f"sort={sort}")
        sort = DEFAULT_SORT
    ranges, by = _read_ranges(query, ignored)
    token, of = _read_token(query, ignored)
    if status == ("dead",) and sort.removeprefix("-") in WHERE_IT_FIRES:
        sort = "index"
    status = () if status == _statuses_of(sort) else status
    new = Filter(status, ranges, sort, by=by, token=token, of=of, logit_class=_read_class(query, ignored))
    return replace(new, after=read_cursor(query.get("after", ""), new, ignored), ignored=tuple(ignored))


def _read_ranges(query: Mapping[str, str], ignored: list[str]) -> tuple[tuple[tuple[str, float], ...], str]:
    """The bounds that can be read, and the statistic that `from` and `to` are about."""
    by, found = query.get("by", ""), []
    if by and by not in BY_NAME:
        ignored.append(f"by={by}")
        by = ""
    for name, (column, _) in RANGES.items():
        text = query.get(name, "").strip()
        bound = read_number(text)
        if bound is not None and (column or by):
            found.append((name, bound))
        elif text:
            ignored.append(f"{name}={text}")
    return tuple(found), by if any(not RANGES[name][0] for name, _ in found) else ""


def _read_token(query: Mapping[str, str], ignored: list[str]) -> tuple[str, str]:
    """The token asked for, its spaces kept: they may be all that there is of it."""
    token, of = query.get("token", "").replace("\0", "")[:LONGEST_TOKEN], query.get("of", "")
    if of and of not in TOKEN_LISTS:
        ignored.append(f"of={of}")
        of = ""
    return token, of if token else ""


def _read_class(query: Mapping[str, str], ignored: list[str]) -> str:
    name = query.get("class", "")
    if name and name not in logit_classes.BY_NAME:
        ignored.append(f"class={name}")
        return ""
    return name


def read_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_cursor(text: str, new: Filter, ignored: list[str]) -> tuple[float | None, int] | None:
    value, _, index = text.rpartition(",")
    number = read_number(value)
    by_index = new.column.name == "index"
    if index.isdecimal() and len(index) < 10 and (not value if by_index else number is not None):
        return (number, int(index))
    if text:
        ignored.append(f"after={text}")
    return None


def cursor_text(after: tuple[float | None, int]) -> str:
    value, index = after
    return str(index) if value is None else f"{value!r},{index}"


@dataclass(frozen=True)
class Rows:
    """One page of a list, and where the next begins."""

    rows: list[dict[str, Any]]
    after: tuple[float | None, int] | None


def page(run_id: int, wanted: Filter, size: int = PAGE) -> Rows:
    """The page after the filter's cursor. Raises TooSlow after settings.LIST_TIMEOUT_MS."""
    packed = _filtered(run_id, wanted, size)
    return packed[0] if packed else _queried(run_id, wanted, size)


def listed(run_id: int, wanted: Filter, size: int = PAGE) -> tuple[Rows, int | None]:
    """The same, and how many latents the filter lets through, up to COUNTED + 1; None where it lets all."""
    packed = _filtered(run_id, wanted, size)
    return packed or (_queried(run_id, wanted, size), count(run_id, wanted) if wanted.narrows else None)


def _queried(run_id: int, wanted: Filter, size: int) -> Rows:
    """By the index of what is sorted by, which answers at once where nothing else is asked."""
    where, values = _where(run_id, wanted, cursor=True)
    column, direction = wanted.column.name, "desc" if wanted.descending else "asc"
    order = f'"index" {direction}' if column == "index" else f'"{column}" {direction}, "index" {direction}'
    found = fetch(f"select {_SELECT} from latent where {where} order by {order} limit %s", [*values, size + 1])
    return _rows(found, wanted, size)


def _filtered(run_id: int, wanted: Filter, size: int) -> tuple[Rows, int] | None:
    """By the packed columns; None where there are none, or nothing is filtered."""
    if not wanted.narrows or (among := latent_filter.among(run_id, _in_columns(wanted), size + 1)) is None:
        return None
    found = fetch(f"select {_SELECT} from latent where run_id = %s and index = any(%s)", [run_id, among[0]])
    place = {index: i for i, index in enumerate(among[0])}
    found.sort(key=lambda row: place[row[0]])
    return _rows(found, wanted, size), min(among[1], COUNTED + 1)


def _in_columns(wanted: Filter) -> latent_filter.Wanted:
    sort = "" if wanted.column.name == "index" else wanted.column.name
    statuses = [STATUS_NAMES.index(name) for name in wanted.statuses]
    tokens = ((wanted.of,) if wanted.of else TOKEN_LISTS, wanted.ids or ()) if wanted.token else None
    return latent_filter.Wanted(statuses, wanted.bounds, tokens, sort, wanted.descending, wanted.after)


def _has_token(wanted: Filter) -> tuple[str, list[list[int]]]:
    lists = (wanted.of,) if wanted.of else TOKEN_LISTS
    return "(" + " or ".join(f"{name} && %s::integer[]" for name in lists) + ")", [list(wanted.ids or ())] * len(lists)


def _rows(found: list[tuple[Any, ...]], wanted: Filter, size: int) -> Rows:
    """A page of so many rows, of which one more was asked for to know whether another follows."""
    rows = [_row(values) for values in found[:size]]
    if len(found) <= size:
        return Rows(rows, None)
    last, column = rows[-1], wanted.column.name
    return Rows(rows, (None if column == "index" else last[column], last["index"]))


def count(run_id: int, wanted: Filter) -> int:
    """How many latents the filter lets through, or COUNTED + 1 for more than COUNTED."""
    where, values = _where(run_id, wanted, cursor=False)
    counted = f"select count(*) from (select 1 from latent where {where} limit %s) found"
    return int(fetch(counted, [*values, COUNTED + 1])[0][0])


def every(run_id: int, wanted: Filter, size: int = 2000) -> Iterator[dict[str, Any]]:
    """All rows from the filter's cursor on, fetched a page at a time so that no statement is long."""
    rest: Filter | None = wanted
    while rest is not None:
        found = page(run_id, rest, size)
        yield from found.rows
        rest = replace(wanted, after=found.after) if found.after else None


def _where(run_id: int, wanted: Filter, cursor: bool) -> tuple[str, list[Any]]:
    """Conditions as the partial indexes of a run spell theirs: status > 0, or status = 0."""
    column = wanted.column.name
    parts, values = ["run_id = %s"], list[Any]([run_id])
    statuses = [STATUS_NAMES.index(name) for name in wanted.statuses]
    if 0 not in statuses:
        parts.append("status > 0")
    if len(statuses) < (3 if 0 not in statuses else 4):
        parts.append("status = 0" if statuses == [0] else "status = any(%s)")
        values += [] if statuses == [0] else [statuses]
    for ranged, than, bound in wanted.bounds:
        parts.append(f'"{ranged}" {than} %s')
        values.append(bound)
    if wanted.token:
        condition, ids = _has_token(wanted)
        parts.append(condition)
        values += ids
    if column != "index":
        parts.append(f'"{column}" is not null')
    if cursor and wanted.after:
        _add_cursor(parts, values, wanted)
    return " and ".join(parts), values


def _add_cursor(parts: list[str], values: list[Any], wanted: Filter) -> None:
    column, than = wanted.column.name, "<" if wanted.descending else ">"
    value, index = wanted.after or (None, 0)
    parts.append(f'"index" {than} %s' if column == "index" else f'("{column}", "index") {than} (%s, %s)')
    values += [index] if column == "index" else [value, index]


def fetch(sql: str, values: list[Any]) -> list[tuple[Any, ...]]:
    """Rows of a list that anyone may ask for, given up after settings.LIST_TIMEOUT_MS."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"set local statement_timeout = {int(settings.LIST_TIMEOUT_MS)}")
            cursor.execute(sql, values)
            return cursor.fetchall()
    except OperationalError as error:
        if isinstance(error.__cause__, pg.QueryCanceled):
            raise TooSlow from error
        raise


def _row(values: tuple[Any, ...]) -> dict[str, Any]:
    row = dict(zip(_FIELDS, values, strict=True))
    row |= {"status": STATUS_NAMES[row["status"]], "spark": bytes(row["spark"])}
    return row | {"logit_class": logit_classes.class_name(row)}
