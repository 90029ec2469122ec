"""One latent as data: its page's .json, complete enough for a notebook. Its keys are stable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import numpy as np

from browser import logit_classes
from browser.contexts import Example, examples
from browser.queries import latent_near, logit_meaning
from browser.queries.counterparts import counterparts
from browser.queries.latents import Stored, documents, neighbour_rows, stored, vocabulary, windows
from browser.queries.saes import ResolvedSae
from browser.tokens import Vocabulary, strings
from sae_backend import packing
from sae_backend.models import Run


def data(resolved: ResolvedSae, index: int) -> dict[str, Any]:
    """All that is known of one latent.

    In examples, interval 0 are the top ones, strongest first; 1 … 10 bands of equal width in (0, max], weak
    to strong; 11 a uniform draw over all firings. Each has its whole context: `tokens` join to the text (a
    character divided among tokens is given by the first, the others are ""), `acts` has one activation a
    token, `peak` is the place of the token it is about. `position` counts tokens within the document.
    misses are where a latent that never fired came closest, on a sample of margin_tokens tokens.
    """
    latent, sae, run = stored(resolved, index), resolved.sae, resolved.run
    words = vocabulary(sae.lm)
    return {
        "sae": sae.public_id,
        "sae_name": sae.name,
        "lm": sae.lm.name,
        "hook_name": sae.hook_name,
        "run": run.number,
        "dtype": run.config.get("dtype"),
        "dataset": run.dataset.name,
        "index": index,
        "stats": latent.values,
        "strongest": [words.text(t) for t in latent.strongest],
        "histogram": _histogram(latent),
        "examples": _examples(resolved, latent, words),
        "logits": _logits(run, latent, words),
        "neighbours": _neighbours(run, latent),
        "misses": _misses(resolved, latent, words),
        "margin_tokens": latent_near.sampled(run, "margin"),
        "counterparts": [x.as_json() for x in counterparts(resolved, index)],
    }


def _histogram(latent: Stored) -> dict[str, Any]:
    """counts[i] firings with edges[i] ≤ activation < edges[i + 1]; intervals are the 10 bands of (0, max]."""
    h = latent.histogram
    edges = packing.bin_edges(h.first_bin + np.arange(len(h.counts) + 1))
    bands = np.linspace(0, latent.top, len(h.intervals) + 1)
    return {
        "edges": edges.tolist() if len(h.counts) else [],
        "counts": h.counts.tolist(),
        "interval_edges": bands.tolist(),
        "interval_counts": h.intervals.tolist(),
    }


def _examples(resolved: ResolvedSae, latent: Stored, words: Vocabulary) -> list[dict[str, Any]]:
    packed, run = latent.examples, resolved.run
    order = np.argsort(packed.interval, kind="stable").tolist()
    found = examples(packed, order, windows(run, resolved.sae.lm.d_vocab, packed.context), words)
    names = documents(run, (e.document for e in found))
    return [_example(e, names.get(e.document), words) for e in found]


def _example(e: Example, name: str | None, words: Vocabulary) -> dict[str, Any]:
    ids = e.window.tokens.tolist()
    acts = _rounded(e.acts.tolist())
    return {
        "interval": e.interval,
        "peak": e.peak,
        "peak_token": words.text(ids[e.peak]),
        "peak_act": acts[e.peak],
        "context": e.window.index,
        "document": name,
        "document_index": e.document,
        "position": e.position,
        "tokens": strings(words, ids),
        "token_ids": ids,
        "acts": acts,
    }


def _rounded(values: Iterable[float]) -> list[float]:
    """Five significant digits: more than the packed activations have."""
    return [float(f"{v:.5g}") if v else 0.0 for v in values]


def _logits(run: Run, latent: Stored, words: Vocabulary) -> dict[str, Any] | None:
    """None for a language model without an unembedding to project on."""
    x = latent.logits
    if not len(x.promoted):
        return None

    def side(ids: Any, effects: Any) -> list[dict[str, Any]]:
        pairs = zip(ids.tolist(), _rounded(effects.tolist()), strict=True)
        return [{"token": words.text(t), "id": t, "effect": e} for t, e in pairs]

    return {
        "promoted": side(x.promoted, x.promoted_effect),
        "suppressed": side(x.suppressed, x.suppressed_effect),
        "moments": {m: latent.values[f"logit_{m}"] for m in ("std", "skewness", "kurtosis")},
        "class": logit_classes.class_name(latent.values),
        "token_sets": logit_meaning.as_json(run, latent.enrichment),
        "histogram": {"low": x.low, "high": x.high, "counts": x.counts.tolist()},
    }


def _misses(resolved: ResolvedSae, latent: Stored, words: Vocabulary) -> list[dict[str, Any]]:
    found = latent_near.missed(resolved, latent)
    names = documents(resolved.run, (e.document for e, _ in found)) if found else {}
    kept = ("peak", "peak_token", "context", "document", "document_index", "position", "tokens", "token_ids")
    examples_of = ((_example(e, names.get(e.document), words), margin) for e, margin in found)
    return [{"margin": _rounded([margin])[0]} | {name: e[name] for name in kept} for e, margin in examples_of]


def _neighbours(run: Run, latent: Stored) -> dict[str, Any]:
    """both and firings count tokens of the sample on which both fire, and on which the other does."""
    x, t = latent.neighbours, latent.together
    others = [] if t is None else t.latent.tolist()
    rows = neighbour_rows(run, [*x.nearest.tolist(), *x.opposing.tolist(), *others])

    def side(indices: Any, cosines: Any, both: Any, firings: Any) -> list[dict[str, Any]]:
        pairs = zip(indices.tolist(), _rounded(cosines.tolist()), _shared(t, both, firings), strict=False)
        return [{"index": i, "cos": c, "density": rows.get(i, {}).get("density"), **n} for i, c, n in pairs]

    beside = ((t.nearest, t.nearest_firings), (t.opposing, t.opposing_firings)) if t else (((), ()), ((), ()))
    out: dict[str, Any] = {
        "nearest": side(x.nearest, x.nearest_cos, *beside[0]),
        "opposing": side(x.opposing, x.opposing_cos, *beside[1]),
        "together": None,
        "sample": None,
    }
    if t is not None:
        shared = zip(others, _shared(t, t.both, t.firings), strict=False)
        out["together"] = [{"index": i, "density": rows.get(i, {}).get("density"), **n} for i, n in shared]
        out["sample"] = {"tokens": t.tokens, "firings": t.own}
    return out


def _shared(t: packing.Together | None, both: Any, firings: Any) -> Iterator[dict[str, Any]]:
    """The Jaccard index with each of some latents and what it rests on; without end where nothing was counted."""
    if t is None:
        yield from repeat({})
        return
    for n, m in zip(both.tolist(), firings.tolist(), strict=True):
        yield {"jaccard": t.jaccard(n, m), "both": n, "firings": m}
