"""Language models and datasets: from a folder or a hub name to rows that runs can use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import transaction

from sae_backend import packing, storage, store
from sae_backend.core import contexts, language_model
from sae_backend.core.language_model import LM
from sae_backend.models import Dataset, LanguageModel


def register_lm(
    name: str, source: str, revision: str = "", load: Callable[[str], LM] = language_model.load,
    owner_id: int | None = None,
) -> LanguageModel:
    """Find the language model by the hash of its files, or load it once to learn its shape and vocabulary."""
    source = str(Path(source).resolve()) if Path(source).is_dir() else source
    try:
        digest = language_model.sha256(source, revision or None)
    except OSError as error:
        raise language_model.LanguageModelError(
            f"{source} cannot be read as a language model ({str(error).splitlines()[0]}); "
            "give a folder with config.json, tokenizer and safetensors, or a name on the hub"
        ) from error
    known = LanguageModel.objects.filter(sha256=digest).first()
    if known is not None:
        return _as_known(known, name, source, revision)
    if LanguageModel.objects.filter(name=name).exists():
        raise language_model.LanguageModelError(f"another language model is called {name!r}; choose another name")
    lm = load(str(language_model.folder(source, revision or None)))
    shape = lm.bridge.cfg
    tokens, special = contexts.vocabulary(lm.tokenizer, int(shape.d_vocab))
    _share(digest, source, revision)
    return LanguageModel.objects.create(
        name=name, source=source, revision=revision, sha256=digest, architecture=type(lm.hf).__name__,
        d_model=shape.d_model, n_layers=shape.n_layers, n_ctx=shape.n_ctx, d_vocab=shape.d_vocab,
        vocabulary=packing.pack_vocabulary(tokens, special), owner_id=owner_id,
    )  # fmt: skip


def _as_known(known: LanguageModel, name: str, source: str, revision: str) -> LanguageModel:
    """The row of files that are here already, pointed at them again only if they have moved."""
    if known.name != name:
        raise language_model.LanguageModelError(f"these are the files of {known.name!r}, which is here: use that")
    try:
        moved = language_model.sha256(known.source, known.revision or None) != known.sha256
    except (OSError, language_model.LanguageModelError):
        moved = True
    _share(known.sha256, source, revision)
    if moved:
        LanguageModel.objects.filter(pk=known.pk).update(source=source, revision=revision)
        known.refresh_from_db()
    return known


def _share(digest: str, source: str, revision: str) -> None:
    """Keep a copy for workers on other hosts, which have no such folder and may not reach the hub."""
    shared = storage.current()
    if shared.shared:
        folder = language_model.folder(source, revision or None)
        found = (path for pattern in language_model.FILES for path in folder.glob(pattern))
        shared.keep(_copy(digest), {path.name: path for path in found})


def _copy(digest: str) -> str:
    return f"models/{digest}"


@contextmanager
def source_of(lm: LanguageModel) -> Iterator[str]:
    """What to load a language model from on this host: its folder, the copy that workers share, or its hub name."""
    shared, copy = storage.current(), _copy(lm.sha256)
    if Path(lm.source).is_dir() and _is_as_added(lm, lm.source):
        yield lm.source
    elif shared.names(copy):
        with shared.reading(copy) as folder:
            _refuse_changed(lm, str(folder))
            yield str(folder)
    else:
        _refuse_missing(lm)
        _refuse_changed(lm, lm.source)
        yield str(language_model.folder(lm.source, lm.revision or None))


def _is_as_added(lm: LanguageModel, source: str) -> bool:
    return language_model.sha256(source, lm.revision or None) == lm.sha256


def _refuse_changed(lm: LanguageModel, source: str) -> None:
    if not _is_as_added(lm, source):
        raise language_model.LanguageModelError(
            f"the files of {lm.name} in {source} are not those it was added with; put those back, or add the "
            "changed ones under another name"
        )


def _refuse_missing(lm: LanguageModel) -> None:
    if Path(lm.source).is_absolute() and not Path(lm.source).is_dir():
        raise language_model.LanguageModelError(
            f"there is no {lm.source} on this worker's host, and {lm.name} is not among the files that workers share; "
            f"where the folder is, run add_model {lm.name} {lm.source} again with the STORE_URL that the workers have"
        )


def register_dataset(
    name: str, source: str, lm: LanguageModel, documents: Iterable[tuple[str, str]], ctx_len: int,
    max_tokens: int | None = None, report: Callable[[int], None] = lambda _: None, recipe: dict[str, Any] | None = None,
    owner_id: int | None = None,
) -> Dataset:
    """Tokenize documents into contexts and store them as they come; one of this name that is ready stays as it is.

    `report` is told how many tokens are stored; what it raises leaves nothing behind.
    """
    if max_tokens is not None and max_tokens < 1:
        message = f"a dataset cannot stop after {max_tokens:,} tokens; give a number above 0, or none for all text"
        raise language_model.LanguageModelError(message)
    known = Dataset.objects.filter(name=name, lm=lm, ctx_len=ctx_len).first()
    if known is not None and known.ready:
        if known.source != source:
            raise language_model.LanguageModelError(
                f"a dataset called {name!r} is there already, made from {known.source}; choose another name"
            )
        return known
    if not 2 <= ctx_len <= lm.n_ctx:
        message = f"{lm.name} reads contexts of 2 to {lm.n_ctx:,} tokens, not {ctx_len:,}"
        raise language_model.LanguageModelError(message)
    with source_of(lm) as files:
        tokenizer = language_model.load_tokenizer(files, lm.revision or None)
    given = {"source": source, "recipe": recipe or {}, "owner_id": owner_id}
    with transaction.atomic():
        row, _ = Dataset.objects.update_or_create(name=name, lm=lm, ctx_len=ctx_len, defaults=given)
        store.write_contexts(row, _blocks(lm, contexts.stream(documents, tokenizer, ctx_len, max_tokens), report))
        row.refresh_from_db()
        if not row.n_contexts:
            raise language_model.LanguageModelError(
                f"the text gives fewer than {ctx_len} tokens, not one context; use more text or a smaller ctx_len"
            )
    return row


def _blocks(
    lm: LanguageModel, blocks: Iterable[contexts.Contexts], report: Callable[[int], None]
) -> Iterator[tuple[contexts.Contexts, Iterator[str]]]:
    """Contexts with their texts; `report` takes the number of tokens that are done."""
    tokens, _ = packing.unpack_vocabulary(bytes(lm.vocabulary))
    done = 0
    for block in blocks:
        _refuse_foreign(block, lm)
        yield block, (b"".join([tokens[i] for i in row]).decode("utf-8", "replace") for row in block.tokens.tolist())
        done += block.tokens.size
        report(done)


def _refuse_foreign(block: contexts.Contexts, lm: LanguageModel) -> None:
    """A tokenizer of more tokens than the model has would end in its embedding with no sentence at all."""
    largest = int(block.tokens.max(initial=0))
    if largest >= lm.d_vocab:
        raise language_model.LanguageModelError(
            f"the tokenizer of {lm.name} gives token {largest:,}, but the model knows {lm.d_vocab:,}: its folder "
            "holds the tokenizer of another model. Put the right one there and add the model again"
        )
