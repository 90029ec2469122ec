"""Language models and datasets that are here: what uses them, and their end."""

from __future__ import annotations

from django.db import transaction
from django.db.models import Q, QuerySet

from sae_backend import storage, store
from sae_backend.additions.errors import AdditionError
from sae_backend.additions.texts import forget_text
from sae_backend.models import Dataset, LanguageModel, Run, Sae, SaeImport


def used_by(what: LanguageModel | Dataset) -> list[str]:
    """What keeps a language model or a dataset from being deleted, in words."""
    if isinstance(what, LanguageModel):
        found = {"SAE": what.saes.count(), "data set": what.datasets.count()}
        under_way = SaeImport.objects.filter(lm=what)
    else:
        found = {"run": Run.objects.filter(dataset=what).count()}
        under_way = SaeImport.objects.filter(dataset=what)
    open_ = _unfinished(under_way).count()
    words = [f"{n} {word}{'s' * (n > 1)}" for word, n in found.items() if n]
    return words + [f"{open_} import{'s' * (open_ > 1)} under way"] * bool(open_)


def _unfinished(imports: QuerySet[SaeImport]) -> QuerySet[SaeImport]:
    over = (SaeImport.State.DONE, SaeImport.State.FAILED, SaeImport.State.CANCELLED)
    return imports.exclude(state__in=over)


def remove_lm(lm: LanguageModel) -> None:
    """Delete a language model that nothing uses, with the copy of its files that workers share."""
    with transaction.atomic():
        LanguageModel.objects.select_for_update().get(pk=lm.pk)
        _refuse_used(lm)
        SaeImport.objects.filter(lm=lm).update(lm=None)
        lm.delete()
    storage.current().remove(f"models/{lm.sha256}")


def remove_dataset(dataset: Dataset) -> None:
    """Delete a dataset that no run is on, with its contexts, and its text where it was uploaded; needs autocommit."""
    with transaction.atomic():
        Dataset.objects.select_for_update().get(pk=dataset.pk)
        _refuse_used(dataset)
        SaeImport.objects.filter(dataset=dataset).update(dataset=None)
        pk = dataset.pk
        dataset.delete()
    store.drop_contexts(pk)
    forget_text(dataset.recipe.get("text_sha256", ""))


def _refuse_used(what: LanguageModel | Dataset) -> None:
    if users := used_by(what):
        raise AdditionError(f"{what.name} is used by {', '.join(users)}: delete what uses it first")


def saes_on(dataset: Dataset) -> QuerySet[Sae]:
    """The SAEs that have a run on a dataset."""
    return Sae.objects.filter(Q(runs__dataset=dataset)).distinct()
