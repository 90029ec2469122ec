"""Which latents of two SAEs answer to each other, told from their best cosines each way; free of torch.

The best cosines are kept, not the classes: these follow from them for any thresholds (`classify`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

N_BEST = 3  # counterparts kept of each latent
MATCH, NEAR = 0.9, 0.7  # thresholds, unless others are asked for
CLASSES = ("dead", "novel", "related", "merged", "split", "matched")  # a latent's is the last that fits
DEAD, NOVEL, RELATED, MERGED, SPLIT, MATCHED = range(len(CLASSES))
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Side:
    """One SAE's n latents with their counterparts among the other's latents that fired in its run."""

    best: npt.NDArray[np.uint32]
    #: [n m], largest cosine first, of equal ones the lower latent.
    cos: npt.NDArray[np.float32]
    #: [n m], NaN where there are fewer, or the latent has no direction.
    live: Bools
    #: [n], fired in the SAE's run.
    fires: npt.NDArray[np.uint32]
    #: [n], tokens of the sample.
    both: npt.NDArray[np.uint32]
    #: [n], tokens of the sample on which its best counterpart fires too.

    @property
    def counterpart(self) -> npt.NDArray[np.int64]:
        """[n], the best counterpart, -1 where there is none."""
        if not self.best.shape[1]:
            return np.full(len(self.best), -1)
        return np.where(np.isnan(self.cos[:, 0]), -1, self.best[:, 0].astype(np.int64))

    @property
    def best_cos(self) -> npt.NDArray[np.float32]:
        """[n], NaN where there is none."""
        return self.cos[:, 0] if self.cos.shape[1] else np.full(len(self.cos), np.nan, np.float32)


def mutual(one: Side, other: Side) -> Bools:
    """[n] latents of `one` that fired and are the best counterpart of their best counterpart."""
    there = one.counterpart
    back = np.where(there >= 0, other.counterpart[there], -1) if len(other.best) else np.full(len(there), -1)
    return one.live & (there >= 0) & (back == np.arange(len(there)))


def classify(small: Side, large: Side, match: float = MATCH, near: float = NEAR) -> tuple[Codes, Codes]:
    """The classes of both SAEs' latents, the smaller SAE's first.

    Matched: mutual best and cos ≥ match. Split: two or more of the larger have the same best in the smaller with
    cos ≥ near; they and it. Merged: the same the other way round. Novel: no cosine reaches near. Related: one does, and
    nothing of this is so. Dead: never fired in its run, so counted with none of them and nobody's counterpart.
    """
    children_of_small, children_of_large = groups(large, len(small.best), near), groups(small, len(large.best), near)
    return (
        _codes(small, mutual(small, large), children_of_small.parent, children_of_large.child, match, near),
        _codes(large, mutual(large, small), children_of_small.child, children_of_large.parent, match, near),
    )


@dataclass(frozen=True)
class Groups:
    """Latents of one SAE that share their best counterpart in the other."""

    child: Bools
    #: [n] of the one.
    parent: Bools
    #: [n] of the other.


def groups(one: Side, n_other: int, near: float = NEAR) -> Groups:
    """Two or more of `one` that fired, with the same best latent among n_other and a cosine of at least `near`."""
    close, there = _close(one, near), one.counterpart
    parent = np.bincount(there[close], minlength=n_other) >= 2
    return Groups(close & np.append(parent, False)[there], parent)


def _close(one: Side, near: float) -> Bools:
    with np.errstate(invalid="ignore"):
        return one.live & (one.counterpart >= 0) & (one.best_cos >= near)


def _codes(one: Side, mutual: Bools, split: Bools, merged: Bools, match: float, near: float) -> Codes:
    codes = np.where(one.live, NOVEL, DEAD).astype(np.int8)
    codes[_close(one, near)] = RELATED
    codes[merged & one.live] = MERGED
    codes[split & one.live] = SPLIT
    with np.errstate(invalid="ignore"):
        codes[mutual & (one.best_cos >= match)] = MATCHED
    return codes
