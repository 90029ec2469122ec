"""How a checkpoint is read and computed, as fields: what was detected stands in each until a person says otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import forms

from browser.templatetags.latent_tags import count
from sae_backend.core.detected import OPTIONS, Option, choices_of
from sae_backend.intake import training
from sae_backend.models import Dataset, LanguageModel, SaeImport

FIRST = ("hook_name", "architecture", "k", "input_norm")  # the others are folded away while nothing is said in them
TOKENS = (10_000, 100_000, 1_000_000, 2_000_000, 10_000_000, 50_000_000, 100_000_000)
DETECTED_AS = {"input_norm": "normalisation", "model_name": "lm_name"}  # where the report calls a thing otherwise
USUAL_HOOKS = ("hook_resid_post", "hook_mlp_out", "hook_attn_out")
YES_NO = (("true", "yes"), ("false", "no"))


class UploadForm(forms.Form):
    """The fields of an import; sent to its addresses, which read them for programs too."""

    name = forms.CharField(label="Name", max_length=200, required=False)
    lm = forms.ChoiceField(label="Language model", required=False)
    dataset = forms.ChoiceField(label="Data set", required=False)
    max_tokens = forms.ChoiceField(label="Tokens", required=False)
    series = forms.CharField(
        label="Series", max_length=200, required=False, help_text="The same name for all checkpoints of one training."
    )
    step = forms.CharField(label="Step", max_length=15, required=False, help_text="Of training: batches or tokens.")

    def __init__(self, row: SaeImport, lms: Iterable[LanguageModel], datasets: Iterable[Dataset]) -> None:
        super().__init__(initial={**_saved(row), **row.options}, auto_id="u-%s")
        self.row = row
        self.found: dict[str, Any] = row.report.get("detected") or {}
        self.asked = {each["field"]: each for each in row.report.get("questions", [])}
        self._offer_step(row)
        self.fields["name"].widget.attrs["placeholder"] = "named after what the files say"
        self._offer_lms(list(lms), {each["id"] for each in row.report.get("fits", [])})
        self._offer_datasets(list(datasets), row)
        for name, option in OPTIONS.items():
            found = self.found.get(DETECTED_AS.get(name, name))
            self.fields[name] = _field(name, option, found, self.asked.get(name))

    def _offer_step(self, row: SaeImport) -> None:
        """What names tell stands in both fields, and is taken where nothing is typed."""
        name, step = training.told(row)
        plain = {"spellcheck": "false", "autocomplete": "off", **({"class": "told"} if name else {})}
        self.fields["series"].widget.attrs |= {**plain, "placeholder": name or "none"}
        self.fields["step"].widget.attrs |= {**plain, "placeholder": "none" if step is None else str(step)}
        self.fields["step"].widget.attrs["inputmode"] = "numeric"
        self.in_training = bool(name or row.series or row.step is not None)

    def _offer_lms(self, lms: list[LanguageModel], fitting: set[int]) -> None:
        fit = [(lm.pk, lm.name) for lm in lms if lm.pk in fitting]
        rest = [(lm.pk, lm.name) for lm in lms if lm.pk not in fitting]
        groups = [("they fit", fit), ("others", rest)] if fit and rest else fit + rest
        self.fields["lm"].choices = [("", "the one that fits"), *groups]  # type: ignore[attr-defined]

    def _offer_datasets(self, datasets: list[Dataset], row: SaeImport) -> None:
        mine = [d for d in datasets if row.lm_id in (None, d.lm_id)]
        names = [(d.pk, _said(d) if row.lm_id else f"{_said(d)} ({d.lm.name})") for d in mine]
        none = "none: only store it" if row.report.get("ready") else "the first there is"
        self.fields["dataset"].choices = [("", none), *names]  # type: ignore[attr-defined]
        longest = max((d.n_tokens for d in mine), default=0)
        kept = {n for n in TOKENS if n < longest} | ({row.max_tokens} if row.max_tokens else set())
        self.fields["max_tokens"].choices = [  # type: ignore[attr-defined]
            ("", "all"), *((n, f"the first {count(n)}") for n in sorted(kept))
        ]  # fmt: skip

    @property
    def hooks(self) -> list[str]:
        """Hook points to choose from: what was detected, and the usual ones of the language model."""
        n_layers = self.row.lm.n_layers if self.row.lm else 0
        usual = [f"blocks.{layer}.{kind}" for kind in USUAL_HOOKS for layer in range(n_layers)]
        return list(dict.fromkeys([*filter(None, [self.found.get("hook_name")]), *usual]))

    @property
    def first(self) -> list[forms.BoundField]:
        """Corrections that are always seen: the usual ones, what is asked, and what is said already."""
        return [self[name] for name in OPTIONS if self._is_first(name)]

    @property
    def more(self) -> list[forms.BoundField]:
        return [self[name] for name in OPTIONS if not self._is_first(name)]

    def _is_first(self, name: str) -> bool:
        usual = name in FIRST and (name != "k" or self.found.get("k") is not None)
        return usual or name in self.asked or name in self.initial


def _said(dataset: Dataset) -> str:
    return f"{dataset.name}, {count(dataset.n_tokens)} tokens"


def _saved(row: SaeImport) -> dict[str, Any]:
    chosen = {"lm": row.lm_id, "dataset": row.dataset_id, "max_tokens": row.max_tokens, "series": row.series}
    return {"name": row.name, "step": row.step, **{field: value or "" for field, value in chosen.items()}}


def _field(name: str, option: Option, found: Any, asked: dict[str, Any] | None) -> forms.Field:
    """A field for one correction; empty means what was detected."""
    text = asked["text"] if asked else option.text
    choices = tuple(map(tuple, (asked or {}).get("choices") or ())) or choices_of(name)
    if option.kind == "yes_no":
        choices = choices or YES_NO
    if choices:
        return forms.ChoiceField(
            label=option.title, help_text=text, required=False, choices=[("", _as_found(found, choices)), *choices]
        )
    attrs = {"spellcheck": "false", "autocomplete": "off", "placeholder": _placeholder(found, asked)}
    if option.kind in ("whole", "number"):
        attrs["inputmode"] = "numeric" if option.kind == "whole" else "decimal"
    if found not in (None, ""):
        attrs["class"] = "detected"
    widget = forms.TextInput(attrs=attrs | ({"list": "hooks"} if option.kind == "hook" else {}))
    return forms.CharField(label=option.title, help_text=text, required=False, max_length=400, widget=widget)


def _as_found(found: Any, choices: Iterable[tuple[str, ...]]) -> str:
    """The choice that leaves a thing as it was detected."""
    titles = {choice[0]: choice[1] for choice in choices}
    plain = str(found).lower() if isinstance(found, bool) else found
    return f"{titles.get(plain, plain)} (detected)" if plain not in (None, "") else "as the files say"


def _placeholder(found: Any, asked: dict[str, Any] | None) -> str:
    default = (asked or {}).get("default")
    blank = "say it here" if asked else "as the files say"
    return next((str(value) for value in (found, default) if value not in (None, "")), blank)
