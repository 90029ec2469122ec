"""The shell's commands: language models, datasets and SAEs, with their progress and their sentences."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.core.management.base import OutputWrapper
from django.db import connections

from browser.management import progress
from sae_backend import kept, registry
from sae_backend.core.language_model import LanguageModelError
from sae_backend.models import Dataset, Document, LanguageModel, Run, SaeImport
from tests.backend import demo, messages, synthetic

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quiet")]
TEXT = "def half(x):\n    return x / 2\n" * 60


def said(*words: Any, **options: Any) -> str:
    out = io.StringIO()
    call_command(*map(str, words), stdout=out, **options)
    return out.getvalue()


@contextmanager
def a_worker() -> Iterator[None]:
    """Messages are carried out beside the command until it ends."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.1):
            messages.carry_out([])
        connections.close_all()

    messages.forget()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_language_model_is_registered_once_whatever_it_is_called() -> None:
    assert said("add_model", "first", demo.DEMO / "model").startswith("first: ")
    assert said("add_model", "first", demo.DEMO / "model").startswith("first: ")
    with pytest.raises(CommandError, match="these are the files of 'first', which is here: use that"):
        said("add_model", "second", demo.DEMO / "model")
    assert LanguageModel.objects.count() == 1


def test_a_name_that_another_language_model_has_is_refused() -> None:
    synthetic.a_dataset()
    with pytest.raises(CommandError, match="another language model is called 'lm 0'; choose another name"):
        said("add_model", "lm 0", demo.DEMO / "model")


def test_a_folder_that_is_no_language_model_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        CommandError, match=f"{tmp_path} holds no config.json: it is no model"
    ):
        said("add_model", "nothing", tmp_path)


def sources(folder: Path) -> dict[str, Path]:
    (folder / "texts").mkdir()
    for name in ("b.txt", "a.txt"):
        (folder / "texts" / name).write_text(TEXT)
    (folder / "one.txt").write_text(TEXT)
    (folder / "lines.jsonl").write_text("".join(json.dumps({"body": TEXT}) + "\n" for _ in range(2)))
    return {"file": folder / "one.txt", "lines": folder / "lines.jsonl", "folder": folder / "texts"}


@pytest.mark.parametrize(
    ("kind", "names"),
    [("file", ["one.txt"]), ("lines", ["lines.jsonl:1", "lines.jsonl:2"]), ("folder", ["a.txt", "b.txt"])],
)
def test_text_becomes_contexts(kind: str, names: list[str], lm: LanguageModel, tmp_path: Path) -> None:
    path = sources(tmp_path)[kind]
    printed = said("add_dataset", kind, path, "--ctx-len", 16, model="demo", field="body")
    row = Dataset.objects.get(name=kind)
    assert printed == f"{kind}: {row.n_contexts:,} contexts of 16 tokens\n"
    assert (row.ready, row.source, row.n_tokens) == (True, str(path), row.n_contexts * 16)
    found = Document.objects.filter(dataset_id=row.pk).order_by("index").values_list("name", flat=True)
    assert list(found) == names


def test_a_dataset_stops_at_the_tokens_asked_for_and_is_not_made_twice(lm: LanguageModel, tmp_path: Path) -> None:
    path = sources(tmp_path)["file"]
    printed = [said("add_dataset", "short", path, "--ctx-len", 16, "--max-tokens", n, model="demo") for n in (70, 900)]
    row = Dataset.objects.get()
    again = f"made on {row.created_at:%Y-%m-%d} and not read again: other text needs another name"
    assert printed == ["short: 4 contexts of 16 tokens\n", f"short: 4 contexts of 16 tokens; {again}\n"]


def test_a_name_that_a_dataset_of_other_text_has_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    paths = sources(tmp_path)
    said("add_dataset", "words", paths["file"], "--ctx-len", 16, model="demo")
    with pytest.raises(CommandError, match=f"'words' is there already, made from {paths['file']}; choose another name"):
        said("add_dataset", "words", paths["folder"], "--ctx-len", 16, model="demo")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere.txt"], "nowhere.txt is neither a file nor a folder"),
        (["lines.jsonl", "--field", "title"], "line 1 of .* with a field 'title': it has text in 'body'"),
        (["one.txt", "--ctx-len", "100000"], "demo reads contexts of 2 to [0-9,]+ tokens, not 100,000"),
        (["one.txt", "--ctx-len", "1"], "demo reads contexts of 2 to"),
        (["one.txt", "--max-tokens", "-5"], "cannot stop after -5 tokens; give a number above 0"),
        (["short.txt"], "fewer than [0-9]+ tokens, not one context; use more text"),
        (
            ["one.txt", "--model", "gpt5"],
            r"no language model is called 'gpt5' \(there are: demo\); add it with add_model",
        ),
    ],
)
def test_text_that_cannot_be_used_is_a_sentence(
    words: list[str], sentence: str, lm: LanguageModel, tmp_path: Path
) -> None:
    sources(tmp_path)
    (tmp_path / "short.txt").write_text("x = 1")
    with pytest.raises(CommandError, match=sentence):
        said("add_dataset", "words", "--model", "demo", tmp_path / words[0], *words[1:])
    assert not Dataset.objects.filter(ready=True).exists()


def test_an_import_says_how_it_goes_until_its_pages_are_ready(lm: LanguageModel) -> None:
    demo.a_dataset(lm)
    with a_worker():
        printed = said("import_sae", demo.SAE, model="demo", dataset="source")
    [row] = SaeImport.objects.all()
    assert row.run is not None and row.run.state == Run.State.LIVE
    lines = printed.splitlines()
    assert lines[-1].split(maxsplit=1) == [demo.SAE.name, f"ready at /s/{row.run.sae.public_id}"]
    assert all(line.startswith(demo.SAE.name) for line in lines) and len(set(lines)) == len(lines)
    assert "\033" not in printed  # no terminal reads it


def test_an_import_that_fails_ends_the_command_with_its_sentence(lm: LanguageModel, tmp_path: Path) -> None:
    out, sentence = io.StringIO(), f"There is no file or folder {tmp_path}/sae.pt"
    with a_worker(), pytest.raises(CommandError, match=sentence) as caught:
        call_command("import_sae", str(tmp_path / "sae.pt"), model="demo", stdout=out)
    assert (out.getvalue() + str(caught.value)).count(sentence) == 1


def test_an_import_need_not_be_waited_for(lm: LanguageModel) -> None:
    messages.forget()
    assert said("import_sae", demo.SAE, "--no-wait", model="demo", name="mine", k=8) == "queued; see /jobs\n"
    row = SaeImport.objects.get(name="mine")
    assert (messages.take(), row.options) == (("import_sae", [row.pk]), {"k": 8})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"model": "gpt5"}, "no language model is called 'gpt5'; there are: demo"),
     ({"model": "demo", "dataset": "pile"}, "no dataset is called 'pile'; there are: none yet")],
)  # fmt: skip
def test_an_import_for_what_is_not_there_names_what_is(
    options: dict[str, str], sentence: str, lm: LanguageModel
) -> None:
    with pytest.raises(CommandError, match=sentence):
        said("import_sae", demo.SAE, **options)
    assert SaeImport.objects.count() == 0


@pytest.mark.parametrize(
    ("state", "good"),
    [(Run.State.LIVE, True), (Run.State.RETIRED, True), (Run.State.DROPPED, True), (Run.State.FAILED, False)],
)
def test_an_import_whose_run_was_published_once_is_good(state: str, good: bool) -> None:
    dataset = synthetic.a_dataset()
    run = synthetic.a_run(synthetic.a_sae(dataset, 128), dataset, state)
    row = SaeImport.objects.create(
        name="old", source="x", lm=dataset.lm, state=SaeImport.State.DONE, sae=run.sae, run=run
    )
    assert (progress.watch([row.pk], OutputWrapper(io.StringIO())) == []) is good


def test_a_model_is_not_pointed_elsewhere_while_its_files_are_in_place(lm: LanguageModel, tmp_path: Path) -> None:
    shutil.copytree(lm.source, tmp_path / "copy")
    assert registry.register_lm(lm.name, str(tmp_path / "copy")).source == lm.source
    LanguageModel.objects.filter(pk=lm.pk).update(source=str(tmp_path / "gone"))
    assert registry.register_lm(lm.name, str(tmp_path / "copy")).source == str(tmp_path / "copy")


def test_a_model_whose_files_have_changed_is_refused_by_the_worker(lm: LanguageModel, tmp_path: Path) -> None:
    shutil.copytree(lm.source, tmp_path / "copy")
    with (tmp_path / "copy" / "config.json").open("a") as file:
        file.write(" ")
    LanguageModel.objects.filter(pk=lm.pk).update(source=str(tmp_path / "copy"))
    kept.lm.cache_clear()
    with pytest.raises(LanguageModelError, match="not those it was added with"):
        kept.lm(lm.pk, "float32")
    kept.lm.cache_clear()
