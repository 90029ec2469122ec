"""What people and programs say of a language model or a data set that is to be added."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError

from browser.templatetags.latent_tags import count
from sae_backend import additions
from sae_backend.core import hub
from sae_backend.models import Addition, Dataset, LanguageModel

USUAL_TOKENS = 10_000_000
ONE_SOURCE = "say where it is: one of {}"
HUB = forms.CharField(label="Name on the hub", required=False, max_length=200, help_text="namespace/name")
REVISION = forms.CharField(label="Revision", required=False, max_length=200, help_text="branch, tag or commit")
FOLDER = forms.CharField(label="Folder of the server", required=False, max_length=1000)


class SourceForm(forms.Form):
    """A source, which is one of several, and a name."""

    sources: tuple[str, ...] = ("hub", "folder")
    name = forms.CharField(label="Name", required=False, max_length=200, help_text="what pages call it")

    def __init__(self, *args: Any, folders: bool = False, upload: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.upload = upload  # the name of a file that came along
        if folders and settings.SOURCE_ROOTS:
            self.fields["folder"].help_text = f"below {' or '.join(settings.SOURCE_ROOTS)}"
        else:
            del self.fields["folder"]

    def clean(self) -> dict[str, Any]:
        said = self.cleaned_data
        origins = [origin for origin in ("hub", "folder", "upload") if self._given(origin)]
        if len(origins) != 1:
            names = [str(field.label) for key, field in self.fields.items() if key in self.sources]
            raise ValidationError(ONE_SOURCE.format(", ".join([*names, *["a file"] * ("upload" in self.sources)])))
        said["origin"], said["source"] = origins[0], self._given(origins[0])
        self._check_source(said)
        said["name"] = said.get("name") or PurePosixPath(said["source"]).name[:200]
        return said

    def _given(self, origin: str) -> str:
        return self.upload if origin == "upload" else str(self.cleaned_data.get(origin) or "")

    def _check_source(self, said: dict[str, Any]) -> None:
        try:
            if said["origin"] == "hub":
                hub.check_name(said["source"], said.get("revision", ""))
            elif said["origin"] == "folder":
                additions.allowed_folder(said["source"])
        except (hub.HubError, additions.AdditionError) as error:
            self.add_error(said["origin"], str(error))


class LmForm(SourceForm):
    """A language model of the hub, or of a folder."""

    hub, revision, folder = HUB, REVISION, FOLDER
    field_order = ("hub", "revision", "folder", "name")

    def clean(self) -> dict[str, Any]:
        said = super().clean()
        if LanguageModel.objects.filter(name=said["name"]).exists():
            self.add_error("name", f"a language model called {said['name']} is here already; choose another name")
        return said

    @property
    def addition(self) -> dict[str, Any]:
        said = self.cleaned_data
        return {key: said[key] for key in ("origin", "name", "source", "revision")} | {"kind": Addition.Kind.MODEL}


class DatasetForm(SourceForm):
    """Text of the hub, of a folder, or of a file that comes along, for one language model's tokenizer."""

    sources = ("hub", "folder", "upload")
    hub, revision, folder = HUB, REVISION, FOLDER
    lm = forms.ModelChoiceField(
        LanguageModel.objects.defer("vocabulary").order_by("name"), to_field_name="name", empty_label=None,
        label="Language model", help_text="whose tokenizer reads it",
    )  # fmt: skip
    files = forms.CharField(  # type: ignore[assignment]  # a name that forms have for uploaded files
        label="Files", required=False, max_length=300, help_text="a pattern, say en/*.jsonl.gz; default: all"
    )
    split = forms.CharField(label="Split", required=False, max_length=100, help_text="default: train")
    field = forms.CharField(
        label="Field or column", required=False, max_length=200, help_text="of the text; default: text, or the only one"
    )
    ctx_len = forms.IntegerField(label="Tokens in a context", required=False, min_value=2, help_text="default: 256")
    max_tokens = forms.IntegerField(label="Stop after so many tokens", required=False, min_value=1)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"initial": {"max_tokens": USUAL_TOKENS}, **options})
        self.fields["max_tokens"].help_text = f"at most {count(settings.MAX_DATASET_TOKENS)}"

    def clean_max_tokens(self) -> int:
        most, wanted = settings.MAX_DATASET_TOKENS, self.cleaned_data.get("max_tokens") or settings.MAX_DATASET_TOKENS
        if wanted > most:
            raise ValidationError(f"{most:,} are allowed here")
        return int(wanted)

    def clean(self) -> dict[str, Any]:
        said = super().clean()
        lm, ctx_len = said.get("lm"), said.get("ctx_len")
        if lm and ctx_len and ctx_len > lm.n_ctx:
            self.add_error("ctx_len", f"{lm.name} reads contexts of at most {lm.n_ctx:,} tokens")
        there = Dataset.objects.filter(name=said["name"], lm=lm, ctx_len=ctx_len or min(256, lm.n_ctx)) if lm else None
        if there is not None and there.filter(ready=True).exists():
            self.add_error("name", f"a data set called {said['name']} is here already; choose another name")
        return said

    @property
    def addition(self) -> dict[str, Any]:
        said = self.cleaned_data
        given = {key: said[key] for key in ("origin", "name", "source", "revision", "lm")}
        options = {key: said[key] for key in additions.OPTIONS if said.get(key)}
        return {**given, "options": options, "kind": Addition.Kind.DATASET}


class OtherLmForm(forms.Form):
    """Another language model for the text of a data set."""

    lm = forms.ModelChoiceField(
        LanguageModel.objects.defer("vocabulary").order_by("name"), to_field_name="name", label="Language model"
    )
