"""Filters of any statistics in the order of any, on a run's packed columns: as quick for what nothing matches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from sae_backend import packed_columns
from sae_backend.models import STATUS_NAMES

KEPT_BYTES = 512 << 20  # of columns, in each process of the web server
MANY, SAMPLE = 16_384, 8_192  # matches that are sorted whole, and how many of more say where to cut
FEW = 4  # tokens that are looked for one by one: to compare takes a tenth of looking each latent's token up
Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]
_columns: OrderedDict[tuple[int, str], npt.NDArray[Any]] = OrderedDict()
_one = Lock()


@dataclass(frozen=True)
class Wanted:
    """What a list asks of a run's latents; a sort by no column is by index."""

    statuses: Sequence[int]
    ranges: Sequence[tuple[str, str, float]]  # column, ">=" or "<=", bound
    tokens: tuple[Sequence[str], Sequence[int]] | None = None  # lists, of which one has one of these tokens
    sort: str = ""
    descending: bool = False
    after: tuple[float | None, int] | None = None  # the last row seen: its statistic and index


@dataclass(frozen=True)
class Hits:
    """The first latents that a token leads to, and how many there are of each status, chosen or not."""

    indices: list[int]
    counts: list[int]  # by Status


def among(run_id: int, wanted: Wanted, size: int) -> tuple[list[int], int] | None:
    """The indices of the page after the cursor, and how many match in all; None where the run has no packed columns."""
    names = {"status", *(column for column, _, _ in wanted.ranges), wanted.sort or "status"} - {"index"}
    names |= set(wanted.tokens[0]) if wanted.tokens else set()
    found = columns(run_id, names)
    if found is None:
        return None
    passing = _passing(found, wanted)
    matches = int(np.count_nonzero(passing))
    return _page(found.get(wanted.sort), passing, wanted, size), matches


def with_token(
    run_id: int, lists: Sequence[str], ids: Sequence[int], statuses: Sequence[int], size: int
) -> Hits | None:
    """Latents that have one of these tokens in one of the lists, the largest activation first."""
    wanted = Wanted(statuses, (), (lists, ids), "max_act", True)
    found = columns(run_id, {"status", "max_act", *lists})
    if found is None:
        return None
    having = _has_token([found[name] for name in lists], ids) & ~np.isnan(found["max_act"])
    counts = np.bincount(found["status"][having], minlength=len(STATUS_NAMES)).tolist()
    having[having] = np.isin(found["status"][having], statuses)
    return Hits(_page(found["max_act"], having, wanted, size), counts)


def columns(run_id: int, names: Collection[str]) -> dict[str, npt.NDArray[Any]] | None:
    """The columns, from memory where they are: a published run's never change; None where it has not packed them."""
    with _one:
        found = {name: _columns[run_id, name] for name in names if (run_id, name) in _columns}
        for name in found:
            _columns.move_to_end((run_id, name))
    found |= packed_columns.read(run_id, missing) if (missing := set(names) - set(found)) else {}
    if len(found) < len(names):
        return None
    with _one:
        _columns.update({(run_id, name): found[name] for name in missing})
        while sum(column.nbytes for column in _columns.values()) > KEPT_BYTES and len(_columns) > len(names):
            _columns.popitem(last=False)
    return found


def forget() -> None:
    """Read all columns again when they are asked for."""
    with _one:
        _columns.clear()


def _passing(columns: dict[str, npt.NDArray[Any]], wanted: Wanted) -> Mask:
    """Undefined statistics pass no range, and are in no order."""
    chosen = np.zeros(128, bool)
    chosen[list(wanted.statuses)] = True
    passing = chosen[columns["status"]]
    for column, than, bound in wanted.ranges:
        values = np.arange(len(passing)) if column == "index" else columns[column]
        passing &= values >= bound if than == ">=" else values <= bound
    if wanted.tokens is not None:
        passing &= _has_token([columns[name] for name in wanted.tokens[0]], wanted.tokens[1])
    if wanted.sort:
        passing &= ~np.isnan(columns[wanted.sort])
    return passing


def _has_token(lists: Sequence[npt.NDArray[Any]], ids: Sequence[int]) -> Mask:
    rows = [row for tokens in lists for row in tokens]
    if 0 < len(ids) <= FEW:
        return _any_equal(rows, ids)
    asked = np.zeros(2 + max(*ids, *(int(row.max()) for row in rows), 0), bool)  # its last is for -1, no token
    asked[list(ids)] = True
    return np.logical_or.reduce([asked[row] for row in rows])


def _any_equal(rows: Sequence[npt.NDArray[Any]], ids: Sequence[int]) -> Mask:
    found = np.zeros(len(rows[0]), bool)
    for row in rows:
        for token in ids:
            found |= row == token
    return found


def _page(values: npt.NDArray[Any] | None, passing: Mask, wanted: Wanted, size: int) -> list[int]:
    if values is None:
        return _by_index(np.flatnonzero(passing), wanted, size)
    if wanted.after is not None:
        passing = passing & _later(values, *wanted.after, wanted.descending)
    at = np.flatnonzero(passing)
    if len(at) > MANY:
        at = _likely(values, passing, at, size, wanted.descending)
    sign = -1 if wanted.descending else 1
    return at[np.lexsort((sign * at, sign * values[at]))][:size].tolist()


def _by_index(at: Places, wanted: Wanted, size: int) -> list[int]:
    at = at[::-1] if wanted.descending else at
    if wanted.after is not None:
        at = at[at < wanted.after[1]] if wanted.descending else at[at > wanted.after[1]]
    return at[:size].tolist()


def _later(values: npt.NDArray[Any], value: float | None, index: int, descending: bool) -> Mask:
    """What comes after a row, in the order (value, index)."""
    later = values < value if descending else values > value
    equal = np.flatnonzero(values == value)
    later[equal[equal < index] if descending else equal[equal > index]] = True
    return later


def _likely(values: npt.NDArray[Any], passing: Mask, at: Places, size: int, descending: bool) -> Places:
    """Few places that have the first `size` among them: those beyond a bound that a sample gives, or all of them.

    A pass that compares costs a tenth of one that sorts. Of those that equal the bound only the first are needed.
    """
    stride = max(1, len(at) // SAMPLE)
    sample = np.sort(values[at[::stride]])[:: -1 if descending else 1]
    bound = sample[min(len(sample) - 1, max(8, 4 * size // stride))]
    better = np.flatnonzero(passing & (values > bound if descending else values < bound))
    if len(better) >= size:
        return better
    equal, rest = np.flatnonzero(passing & (values == bound)), size - len(better)
    if len(equal) < rest:
        return at
    return np.concatenate([better, equal[-rest:] if descending else equal[:rest]])
