"""What people type about an SAE that is here, checked before anything is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.core.exceptions import ValidationError

from browser.templatetags.latent_tags import count
from sae_backend.managing import DTYPES
from sae_backend.models import Dataset, Sae

MOST_LINKS = 20


class RenameForm(forms.Form):
    name = forms.CharField(label="Name", max_length=200)


class SeriesForm(forms.Form):
    """Which checkpoint of a training it is."""

    series = forms.CharField(
        label="Series", max_length=200, required=False,
        help_text="The same name for all checkpoints of one training; none takes it out of its series.",
    )  # fmt: skip
    step = forms.IntegerField(
        label="Step", min_value=0, max_value=2**62, required=False, help_text="Of training: batches or tokens."
    )

    def clean(self) -> dict[str, Any]:
        said = super().clean() or {}
        if said.get("series") and said.get("step") is None and not self.errors:
            self.add_error("step", "Give the step too: it says where in its series this one stands.")
        return said


class AboutForm(forms.Form):
    """What people say of an SAE; nothing is computed from it."""

    hook_point = forms.CharField(
        label="Hook point as shown", max_length=200, required=False,
        help_text="Say “residual stream after layer 6”; what is computed stays where it was.",
    )  # fmt: skip
    training_data = forms.CharField(label="Trained on", max_length=500, required=False)
    licence = forms.CharField(label="Licence", max_length=200, required=False)
    links = forms.CharField(
        label="Links", max_length=4000, required=False, widget=forms.Textarea(attrs={"rows": 3}),
        help_text="One address a line: paper, code, weights.",
    )  # fmt: skip
    notes = forms.CharField(
        label="Notes", max_length=10_000, required=False, widget=forms.Textarea(attrs={"rows": 5})
    )

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> AboutForm:
        """Filled with what is said already."""
        return cls(initial={**about, "links": "\n".join(about.get("links", []))})

    def clean_links(self) -> list[str]:
        links = str(self.cleaned_data["links"]).split()
        wrong = [link for link in links if not _is_web_address(link)]
        if wrong:
            raise ValidationError(f"{wrong[0]} is no address of the web: it must begin with https:// or http://")
        if len(links) > MOST_LINKS:
            raise ValidationError(f"{len(links)} links are too many; give the {MOST_LINKS} that help most")
        return links


class DatasetField(forms.ModelChoiceField):
    """A dataset of one language model: pages name it by number, programs by its name too."""

    def label_from_instance(self, dataset: Dataset) -> str:  # type: ignore[override]
        return f"{dataset.name}, {count(dataset.n_tokens)} tokens in contexts of {dataset.ctx_len}"

    def to_python(self, value: Any) -> Any:
        if not value or str(value).isdecimal():
            return super().to_python(value)
        named = list(self.queryset.filter(name=value)[:2])  # type: ignore[union-attr]
        if len(named) != 1:
            raise ValidationError("No data set of this language model, or several, have this name: give its number")
        return named[0]


class RerunForm(forms.Form):
    """On what, and how, an SAE is to be computed again."""

    dataset = DatasetField(Dataset.objects.none(), label="Data set", empty_label=None)
    max_tokens = forms.IntegerField(
        label="Tokens, at most", min_value=1, max_value=10**15, required=False, help_text="Empty: all of the data set."
    )
    dtype = forms.ChoiceField(
        label="Computed in", choices=[("", "as before"), *((d, d) for d in DTYPES)], required=False,
        help_text="float32 is the reference; bfloat16 is quicker where the hardware has it.",
    )  # fmt: skip

    def __init__(self, sae: Sae, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data)
        ready = Dataset.objects.filter(lm=sae.lm_id, ready=True).order_by("name", "pk")
        self.fields["dataset"].queryset = ready  # type: ignore[attr-defined]


class DeleteForm(forms.Form):
    """The SAE's name, typed once more."""

    confirm = forms.CharField(label="Type the SAE's name to delete it", max_length=200)

    def __init__(self, sae: Sae, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data)
        self.sae = sae

    def clean_confirm(self) -> str:
        typed = str(self.cleaned_data["confirm"])
        if typed.strip() != self.sae.name.strip():
            raise ValidationError(f"This is not its name. Type {self.sae.name} to delete it, with all its runs.")
        return typed


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.netloc)
