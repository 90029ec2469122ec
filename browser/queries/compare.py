"""Two SAEs beside each other: the choice of a pair, the progress of their comparison, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from django.http import QueryDict

from browser import plots
from browser.errors import NotFound
from browser.frontier_chart import Frontier
from browser.permissions import Anyone, may_change, may_compare
from browser.queries import compare_classes, compare_lists, frontier, saes
from browser.queries.compare_classes import Both
from browser.queries.compare_lists import Asked, List
from browser.queries.saes import all_saes
from sae_backend import comparisons
from sae_backend.compared import BLOBS
from sae_backend.core.matching import CLASSES, DEAD, MATCHED, MERGED, NOVEL, RELATED, SPLIT
from sae_backend.models import Comparison, Sae

SAMPLE = 65_536  # tokens at most: core.compare.SAMPLE_TOKENS, which needs torch
LEAST_SHARE = 5e-4  # less is printed as 0.0 %
MOST_CHOICES = 200  # SAEs offered to compare with
HERE = {NOVEL: "only here", RELATED: "related", MERGED: "merged", SPLIT: "split", MATCHED: "matched"}
MEANS = {
    MATCHED: "Each is the other's best, with a cosine of at least the first threshold",
    SPLIT: "Two or more latents of the larger SAE share their best in the smaller, each with at least the second",
    MERGED: "Two or more latents of the smaller SAE share their best in the larger, each with at least the second",
    RELATED: "A cosine of at least the second threshold, and none of the above",
    NOVEL: "No cosine with a latent of the other SAE that fired reaches the second threshold",
}


@dataclass(frozen=True)
class Choosing:
    """No pair yet: SAEs to choose from, or why the one chosen is none."""

    said: str  # what is wrong with what was asked for
    first: Sae | None
    choices: list[Sae]
    template: ClassVar[str] = "browser/compare_choose.html"

    def as_json(self) -> dict[str, Any]:
        return {"error": "no pair", "message": self.said, "choices": [sae.public_id for sae in self.choices]}


@dataclass(frozen=True)
class Metric:
    """A figure of both SAEs, and in words which is better where that can be said."""

    label: str
    a: float | None
    b: float | None
    style: str  # how it is printed
    better: str = ""  # "lower" or "higher"
    figure: str = ""  # its definition

    @property
    def delta(self) -> float | None:
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def words(self) -> str:
        """Better or worse, B against A; nothing where neither is better or, as percents are printed, they are equal."""
        if not self.delta or not self.better or (self.style == "percent" and abs(self.delta) < LEAST_SHARE):
            return ""
        return "better" if (self.delta > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True)
class Row:
    """A class of latents in both SAEs: how many, and their share of all firing on the sample."""

    code: int
    name: str
    means: str
    a: tuple[int, float | None, float | None]  # latents, share of those that fired, share of firing
    b: tuple[int, float | None, float | None]

    @property
    def css(self) -> str:
        return {MATCHED: "qm", SPLIT: "qs", MERGED: "qg", RELATED: "qr", NOVEL: "qn"}[self.code]


@dataclass(frozen=True)
class Heading:
    """A column's head, a link where the list can be sorted by it."""

    label: str
    query: str
    order: str  # aria-sort, or ""
    num: bool
    css: str
    title: str


@dataclass(frozen=True)
class ComparePage:
    """A pair that may be compared, was, or is being."""

    a: Sae
    b: Sae
    asked: Asked
    row: Comparison | None
    both: Both | None  # once it is done
    listed: List | None
    may_ask: bool
    may_cancel: bool = False
    outdated: bool = False
    seconds: float | None = None  # that it may take
    said: str = ""  # why a wish could not be granted
    template: ClassVar[str] = "browser/compare_detail.html"

    @property
    def changing(self) -> bool:
        return self.row is not None and self.row.state in comparisons.OPEN

    @property
    def share(self) -> float | None:
        """Percent of the stage at hand, where its end is known."""
        return min(100.0, 100 * self.row.done / self.row.total) if self.row and self.row.total else None

    @property
    def query(self) -> str:
        return self.asked.query(after="")

    @property
    def swapped(self) -> str:
        return self.asked.swapped

    @cached_property
    def metrics(self) -> list[Metric]:
        return metrics(self.a, self.b, self.sample)

    @cached_property
    def frontier(self) -> Frontier | None:
        return frontier.between(self.a, self.b)

    @property
    def same_text(self) -> bool:
        """Whether both runs read the same tokens."""
        one, other = self.a.current_run, self.b.current_run
        same = one and other and (one.dataset_id, one.tokens_total) == (other.dataset_id, other.tokens_total)
        return bool(same)

    @property
    def sample(self) -> dict[str, Any]:
        """What both were measured on, with the figures of each under its name on this page."""
        if self.row is None or self.row.state != Comparison.State.DONE:
            return {}
        turned = self.row.a_id != self.a.pk
        found = dict(self.row.summary)
        return {**found, "a": found["b" if turned else "a"], "b": found["a" if turned else "b"]}

    @cached_property
    def rows(self) -> list[Row]:
        both = self.both
        if both is None:
            return []
        parts = {code: (both.share("a", code), both.share("b", code)) for code in HERE}
        return [Row(code, HERE[code], MEANS[code], *parts[code]) for code in (MATCHED, SPLIT, MERGED, RELATED, NOVEL)]

    @property
    def tags(self) -> list[tuple[str, str]]:
        return [("a", "A"), ("b", "B")]

    @property
    def tabs(self) -> list[tuple[str, str, int, str]]:
        """Key, name, latents (or groups) and address of each."""
        counts = self.listed.counts if self.listed else []
        return [(key, name, n, self.asked.query(tab=key, sort="", after="")) for key, name, n in counts]

    @property
    def tab_name(self) -> str:
        return compare_lists.NAMES[self.asked.tab]

    @property
    def next_page(self) -> str:
        return self.asked.query(after=self.listed.after if self.listed else "")

    @property
    def headings(self) -> list[Heading]:
        """Of a list of latents and their counterparts, or of parents."""
        parent = (self.listed.parent if self.listed else "a").upper()
        other = "B" if parent == "A" else "A"
        if self.listed and self.listed.grouped:
            return [self._heading("children", f"latent, by how many it has in {other}")]
        return [
            self._heading("index", f"latent of {parent}"), self._heading("cos", "cos", num=True),
            Heading(f"its best in {other}", "", "", False, "", ""),
            self._heading("together", "together", True, "Tokens on which both fire, over tokens on which either does"),
            self._heading("density", f"density in {parent}", True), Heading(f"in {other}", "", "", True, "p2", ""),
        ]  # fmt: skip

    def _heading(self, name: str, label: str, num: bool = False, title: str = "") -> Heading:
        """Largest first, but the smallest index; a second click turns it round."""
        now, first = self.asked.order, name if name == "index" else f"-{name}"
        other = first.removeprefix("-") if first.startswith("-") else f"-{name}"
        here = now.removeprefix("-") == name
        order = ("descending" if now.startswith("-") else "ascending") if here else ""
        query = self.asked.query(sort=other if now == first else first, after="")
        return Heading(label, query, order, num, "", title)

    @property
    def pairs(self) -> int:
        return self.a.d_sae * self.b.d_sae

    @cached_property
    def dead(self) -> tuple[int, int]:
        return (self.both.share("a", DEAD)[0], self.both.share("b", DEAD)[0]) if self.both else (0, 0)

    @cached_property
    def chart(self) -> plots.CosineChart | None:
        return plots.cosines(self.both.cosines("a"), self.both.cosines("b"), self.asked.near) if self.both else None

    @property
    def stitched(self) -> list[tuple[str, str, Mapping[str, Any], list[dict[str, Any]]]]:
        """Of each: whose latents are added to whom, that one's own figures, and those with latents added."""
        if not self.sample:
            return []
        names = {"a": "A", "b": "B"}
        return [
            (names["b" if side == "a" else "a"], names[side], self.sample[side], self._points(side)) for side in "ab"
        ]

    def _points(self, side: str) -> list[dict[str, Any]]:
        own = self.sample[side]
        out = []
        for point in own["stitched"]:
            change = None if None in (point["fvu"], own["fvu"]) else point["fvu"] - own["fvu"]
            out.append(point | {"change": change, "here": point["near"] == self.asked.near})
        return out

    def as_json(self) -> dict[str, Any]:
        """Everything the page says; the list is one page of it, `next` leads on."""
        row = self.row
        out: dict[str, Any] = {
            "a": _sae_json(self.a), "b": _sae_json(self.b), "match": self.asked.match, "near": self.asked.near,
            "state": row.state if row else "not asked for", "error": (row.error or None) if row else None,
            "outdated": self.outdated,
            "metrics": [{"name": m.label, "a": m.a, "b": m.b, "b_is": m.words or None} for m in self.metrics],
        }  # fmt: skip
        if self.changing and row:
            out |= {"stage": row.stage, "done": row.done, "total": row.total, "unit": row.unit}
            out["may_cancel"] = self.may_cancel
        if self.both is None:
            return out
        classes = {
            CLASSES[x.code]: {side: dict(zip(("latents", "share", "of_firing"), getattr(x, side), strict=True))
                              for side in "ab"} for x in self.rows
        }  # fmt: skip
        listed = self.listed.as_json() if self.listed else None
        counts = dict(zip("ab", self.dead, strict=True))
        histogram = {side: self.both.histogram(side) for side in "ab"}
        return out | {
            "sample": self.sample, "classes": classes, "dead": counts, "histogram": histogram, "list": listed,
        }  # fmt: skip


def _sae_json(sae: Sae) -> dict[str, Any]:
    run = sae.current_run.number if sae.current_run else None
    return {"id": sae.public_id, "name": sae.name, "d_sae": sae.d_sae, "run": run}


def metrics(a: Sae, b: Sae, sample: Mapping[str, Any]) -> list[Metric]:
    """Figures of both live runs, then those on the text that both were measured on."""
    one, other = (sae.current_run.summary if sae.current_run else {} for sae in (a, b))

    def of(label: str, read: Callable[[Any], Any], style: str, better: str = "", figure: str = "") -> Metric:
        return Metric(label, read(one) if one else None, read(other) if other else None, style, better, figure)

    def plain(name: str) -> Callable[[Any], Any]:
        return lambda summary: summary.get(name)

    def inner(name: str, key: str) -> Callable[[Any], Any]:
        return lambda summary: (summary.get(name) or {}).get(key)

    dead = [(s.get("counts") or {}).get("dead") for s in (one, other)]
    shares = [None if n is None else n / sae.d_sae for n, sae in zip(dead, (a, b), strict=True)]
    alive = [None if n is None else sae.d_sae - n for n, sae in zip(dead, (a, b), strict=True)]
    out = [
        Metric("d_sae", a.d_sae, b.d_sae, "thousands"),
        Metric("Fired", alive[0], alive[1], "thousands", "", "status"),
        Metric("Dead", shares[0], shares[1], "percent", "lower", "status"),
        of("L0", plain("l0"), "fixed1", "", "l0"),
        of("FVU", plain("fvu"), "fixed3", "lower", "fvu"),
        of("Normalised MSE", plain("normalised_mse"), "fixed3", "lower", "normalised_mse"),
        of("CE recovered", inner("ce", "recovered"), "percent", "higher", "ce"),
        of("Features per dim.", plain("features_per_dimension"), "compact", "", "features_per_dimension"),
        of("Basis kurtosis", inner("basis_kurtosis", "plain"), "fixed2", "", "basis_kurtosis"),
        of("Nearest cos, mean", plain("mean_nearest_cos"), "fixed2", "", "nearest_cos"),
    ]
    if sample:
        out += [
            Metric("L0, same text", sample["a"]["l0"], sample["b"]["l0"], "fixed1", "", "sample"),
            Metric("FVU, same text", sample["a"]["fvu"], sample["b"]["fvu"], "fixed3", "lower", "sample"),
        ]
    return out


# ---- what an address means --------------------------------------------------------------------------


def find(ref: str) -> Sae:
    """The SAE of an identity or a name, with its live run; NotFound says what there is."""
    named = saes.called(ref)
    return named or saes.find(ref.partition("@")[0])


def _ref(text: str) -> str:
    """Without NUL, which no text of the database may have."""
    return text.replace("\0", "").strip()[:200]


def pair(query: QueryDict) -> tuple[Sae, Sae] | Choosing:
    """The two SAEs of an address, or what there is to choose from."""
    refs = [_ref(text) for text in (query.get("a", ""), query.get("b", ""))]
    refs = [ref for ref in refs if ref] or [_ref(text) for text in query.getlist("sae")]
    try:
        chosen = [find(ref) for ref in refs[:2]]
    except NotFound as unknown:
        return choosing(None, f"{unknown.heading}. {unknown.sentence}")
    if len(refs) != 2:
        said = f"{len(refs)} are ticked: two are compared at a time." if len(refs) > 2 else ""
        return choosing(chosen[0] if len(refs) == 1 else None, said)
    if reason := comparisons.why_not(*chosen):
        return choosing(chosen[0], reason)
    return chosen[0], chosen[1]


def choosing(first: Sae | None, said: str) -> Choosing:
    """SAEs with pages: at the hook point of the first where there is one, nearest in width first."""
    ready = all_saes().filter(current_run__isnull=False)
    if first is None:
        return Choosing(said, None, list(ready.order_by("lm__name", "hook_name", "name", "pk")[:MOST_CHOICES]))
    same = {"lm": first.lm_id, "hook_name": first.hook_name, "hook_name_out": first.hook_name_out, "d_out": first.d_out}
    others = ready.filter(**same).exclude(pk=first.pk).order_by("d_sae", "name", "pk")
    return Choosing(said, first, list(others[:MOST_CHOICES]))


def page(user: Anyone, query: QueryDict, said: str = "", with_list: bool = True) -> ComparePage | Choosing:
    found = pair(query)
    if isinstance(found, Choosing):
        return found
    a, b = found
    asked, row = Asked.of(query, a, b), comparisons.between(a, b)
    both = compare_classes.both(row, a, b, asked.match, asked.near) if row else None
    listed = compare_lists.listed(both, asked) if both and with_list else None
    outdated = row is not None and comparisons.outdated(row, a, b)
    seconds = None if both else estimate(a, b)
    may_cancel = row is not None and may_change(user, row)
    return ComparePage(a, b, asked, row, both, listed, may_compare(user), may_cancel, outdated, seconds, said)


def estimate(a: Sae, b: Sae) -> float | None:
    """Seconds that a comparison takes at the speed of the last one; None before the first."""
    done = Comparison.objects.filter(state=Comparison.State.DONE, started_at__isnull=False).select_related("a", "b")
    last = done.defer(*BLOBS).order_by("-done_at").first()
    if last is None or last.done_at is None or last.started_at is None:
        return None
    return (last.done_at - last.started_at).total_seconds() * _work(a, b) / _work(last.a, last.b)


def _work(a: Sae, b: Sae) -> float:
    """Products: of all pairs each way, and of the sample with both encoders."""
    return 2 * a.d_sae * b.d_sae * a.d_out + SAMPLE * a.d_in * (a.d_sae + b.d_sae)
