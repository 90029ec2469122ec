"""Which language models here an SAE may belong to, by what is known of them without loading any."""

from __future__ import annotations

import re
from typing import Any

from sae_backend.models import LanguageModel

HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
# hook points as wide as the residual stream; others depend on the architecture
RESIDUAL = (
    "hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_mlp_in",
    "ln1.hook_normalized", "ln2.hook_normalized", "mlp.hook_in", "mlp.hook_out", "attn.hook_out",
)  # fmt: skip


def of(hook_name: str | None, hook_name_out: str | None, d_in: int) -> list[dict[str, Any]]:
    """Language models that may have these hook points; `sure` where the width is known to be right."""
    found = []
    for lm in LanguageModel.objects.defer("vocabulary").order_by("name"):
        wide = _width_fits(lm, hook_name, d_in)
        if wide is not False and _has_layer(lm, hook_name) and _has_layer(lm, hook_name_out):
            found.append({"id": lm.pk, "name": lm.name, "hook_point": hook_name, "sure": bool(wide)})
    return found


def _has_layer(lm: LanguageModel, hook_name: str | None) -> bool:
    match = HOOK.fullmatch(hook_name or "")
    return match is None or int(match[1]) < lm.n_layers


def _width_fits(lm: LanguageModel, hook_name: str | None, d_in: int) -> bool | None:
    """None where it cannot be told without loading the language model."""
    match = HOOK.fullmatch(hook_name or "")
    if (match[2] if match else hook_name) in RESIDUAL:
        return lm.d_model == d_in
    return None if match is not None or lm.d_model == d_in else False


def chosen(fitting: list[dict[str, Any]], said: str | None) -> LanguageModel | None:
    """The language model that is meant: of the name that the files say, or the only one that surely fits."""
    named = [each for each in fitting if said and _plain(each["name"]) == _plain(said)]
    sure = [each for each in fitting if each["sure"]]
    for found in (named, sure):
        if len(found) == 1:
            return LanguageModel.objects.filter(pk=found[0]["id"]).first()
    return None


def _plain(name: str) -> str:
    """Without its organisation, case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].lower()).removesuffix("small")
