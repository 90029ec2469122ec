"""The residual stream that the sparse autoencoders learn from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from demo.training.settings import CTX_LEN, D_MODEL, END_OF_TEXT_ID, LAYER

ROW = CTX_LEN - 1
TEST_SHARE = 0.45


def training_rows(tokens: dict[str, np.ndarray], positions: int, rng: np.random.Generator) -> np.ndarray:
    """Rows [row pos] of about `positions` positions: all of the demo data set, then tests and packages."""
    lib = rows(tokens["lib"], offset=0)
    wanted = positions // ROW
    rest = max(0, wanted - len(lib))
    test, site = rows(tokens["test"], offset=17), rows(tokens["site"], offset=17)
    from_test = int(rest * TEST_SHARE)
    parts = [(lib, wanted), (test, from_test), (site, rest - from_test)]
    chosen = np.concatenate([part[rng.permutation(len(part))[:count]] for part, count in parts])
    return chosen[rng.permutation(len(chosen))]


def rows(tokens: np.ndarray, offset: int) -> np.ndarray:
    """Cut the text into rows [row pos] of end-of-text and 255 tokens, as the site feeds them."""
    count = max(0, len(tokens) - offset) // ROW
    text = tokens[offset : offset + count * ROW].reshape(count, ROW)
    return np.concatenate([np.full((count, 1), END_OF_TEXT_ID), text], axis=1).astype(np.int64)


@torch.no_grad()
def collect(lm: GPT2LMHeadModel, token_rows: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Residual stream [position d_in], computed in `dtype`; position 0, always end-of-text, is left out."""
    trunk = cut(lm)
    hidden = torch.empty(len(token_rows), token_rows.shape[1] - 1, D_MODEL, dtype=dtype)
    for start in range(0, len(token_rows), 16):
        batch = torch.from_numpy(token_rows[start : start + 16])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden[start : start + 16] = trunk(batch, use_cache=False).last_hidden_state[:, 1:]
    return hidden.flatten(0, 1)


def cut(lm: GPT2LMHeadModel) -> torch.nn.Module:
    """The model up to the hook point; it shares the weights with `lm` and leaves it whole."""
    trunk = type(lm.transformer)._from_config(lm.config, attn_implementation="eager").eval()
    trunk.wte, trunk.wpe = lm.transformer.wte, lm.transformer.wpe
    trunk.h = lm.transformer.h[: LAYER + 1]
    trunk.ln_f = torch.nn.Identity()
    return trunk
