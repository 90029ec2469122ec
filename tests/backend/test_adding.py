"""Language models and text on their way in: from the hub, folders and uploads to rows, or to sentences."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from django.contrib.auth.models import User
from pyarrow import parquet
from transformers import Qwen3Config

from sae_backend import additions, kept, registry, storage, store, taking
from sae_backend.additions import worker
from sae_backend.core import bootable, contexts
from sae_backend.models import Addition, Dataset, Document, LanguageModel
from tests import hub
from tests.backend import messages
from tests.core import small, test_hook_points

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quiet")]
TEXT = "def half(x):\n    return x / 2\n" * 20
State = Addition.State


def tried(row: Addition) -> Addition:
    messages.carry_out([])
    row.refresh_from_db()
    return row


def added(kind: str, source: str, origin: str = "hub", **more: Any) -> Addition:
    row = tried(additions.ask(kind, origin, "mine", source, **more))
    assert row.state == State.DONE, row.error
    return row


def refused(kind: str, source: str, origin: str = "hub", **more: Any) -> str:
    row = tried(additions.ask(kind, origin, "mine", source, **more))
    assert row.state == State.FAILED and not Dataset.objects.filter(name="mine").exists()
    return row.error


def model(folder: Path, architecture: str = "gpt2", **changes: Any) -> Path:
    return small.save_lm(folder, architecture, **changes)


def changed(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


# ---- language models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", small.CONFIGS)
def test_a_model_of_the_hub_is_registered_at_its_commit(architecture: str, online: hub.Hub, tmp_path: Path) -> None:
    files = model(tmp_path / "m", architecture)
    (files / "onnx").mkdir()
    (files / "onnx" / "model.onnx").write_bytes(b"x")
    (files / "pytorch_model.bin").write_bytes(b"x")
    repo = online.add("model", "org/tiny", files)
    ada = User.objects.create_user("ada")
    row = added("model", "org/tiny", owner=ada)
    lm = row.made_lm
    assert lm is not None and (lm.name, lm.source, lm.revision, lm.owner) == ("mine", "org/tiny", repo.commit, ada)
    assert (lm.n_layers, lm.d_model, lm.d_vocab) == (2, small.D_MODEL, 257)
    assert lm.sha256 == registry.language_model.sha256(str(files))  # the same files, wherever they are
    asked = " ".join(online.requests)
    assert "onnx" not in asked and "pytorch_model" not in asked
    with registry.source_of(lm) as source:
        assert registry.language_model.load(source, revision=lm.revision).bridge is not None


OTHERS = {"gemma3": "Gemma3", "mistral": "Mistral", "olmo2": "Olmo2", "phi": "Phi", "qwen2": "Qwen2", "qwen3": "Qwen3"}


@pytest.mark.parametrize("architecture", OTHERS)
def test_models_of_other_architectures_are_added_and_read(
    architecture: str, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {**test_hook_points.MODELS, "qwen3": (Qwen3Config, {**test_hook_points.GROUPED, "head_dim": 16})}
    monkeypatch.setitem(small.CONFIGS, architecture, made[architecture])
    settings.SOURCE_ROOTS = [str(tmp_path)]
    lm = added("model", str(model(tmp_path / "m", architecture)), "folder").made_lm
    assert lm is not None and lm.architecture == f"{OTHERS[architecture]}ForCausalLM"
    assert (lm.n_layers, lm.d_model, lm.d_vocab) == (3, small.D_MODEL, 257)
    with registry.source_of(lm) as source:
        assert registry.language_model.load(source).width("blocks.2.hook_resid_post") == small.D_MODEL


def test_models_in_several_files_are_read_whole(online: hub.Hub, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = model(tmp_path / "m")
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(whole, max_shard_size="40KB")
    (whole / "model.safetensors").unlink()
    assert len(list(whole.glob("model-*.safetensors"))) > 1
    online.add("model", "org/tiny", whole)
    assert added("model", "org/tiny").made_lm is not None


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def climbing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../../../../etc/passwd", "b": "/etc/shadow"}}
    (folder / bootable.INDEX).write_text(json.dumps(index))


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (without("config.json"), "holds no config.json"),
    "no weights": (without("model.safetensors"), "holds no model.safetensors"),
    "pickles": (pickled, "weights in pickles alone, which can run code .* convert them"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "holds no tokenizer"),
    "own code": (lambda f: changed(f, model_type="mine", auto_map={"AutoModel": "e.M"}), "code of its own .* never"),
    "unknown": (lambda f: changed(f, model_type="mine"), "of the type 'mine', which transformers .* lacks"),
    "no causal model": (lambda f: changed(f, model_type="t5", architectures=["T5Model"]), "predicts no next token"),
    "no adapter": (lambda f: changed(f, architectures=["NewForCausalLM"]), "TransformerLens .* has no adapter for New"),
    "deep": (lambda f: (f / "config.json").write_text("[" * 10**5), "config.json is not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json holds no JSON object"),
    "an index that climbs": (climbing, "lacks 2 of its 2 files of weights"),
    "damaged": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 90), "cannot load the language model"),
}


def test_a_model_that_cannot_be_used_is_a_sentence(online: hub.Hub, tmp_path: Path, settings: Any) -> None:
    settings.SOURCE_ROOTS = [str(tmp_path)]
    good = model(tmp_path / "good")
    for number, (case, (spoil, sentence)) in enumerate(WRONG.items()):
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        spoil(folder)
        online.add("model", f"org/m{number}", folder)
        for source, origin in ((f"org/m{number}", "hub"), (str(folder), "folder")):
            error = refused("model", source, origin)
            assert re.search(sentence, error), (case, origin, error)
    assert not LanguageModel.objects.exists()


def test_what_the_hub_does_not_give_is_a_sentence(online: hub.Hub) -> None:
    online.add("model", "org/gated", {"config.json": b"{}"}, gated=True)
    online.add("model", "org/ill", {}, status=500)
    online.add("model", "org/secret", {}, status=403)
    online.add("model", "org/evil", {"../../config.json": b"{}", "/etc/x": b"", "a/../config.json": b""})
    for name, revision, sentence in [
        ("org/none", "", "the hub has no model org/none, or it is private"),
        ("org/gated", "", "is gated, for those who have accepted its terms .* staff may add it once"),
        ("org/gated", "v9", "is gated"),
        ("org/secret", "", "does not give the model org/secret to this site .status 403"),
        ("org/ill", "", "answers with status 500"),
        ("org/evil", "", "holds no config.json"),
        ("org/evil", "v9", "has no revision v9"),
        ("../etc", "", "is no name on the hub"),
    ]:
        error = refused("model", name, revision=revision)
        assert re.search(sentence, error), error


def test_the_servers_token_is_used_for_staff_alone(
    online: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online.add("model", "org/gated", model(tmp_path / "m"), gated=True)
    monkeypatch.setenv("HF_TOKEN", online.token)
    assert "is gated" in refused("model", "org/gated")
    assert added("model", "org/gated", options={"token": True}).made_lm is not None


def test_a_hub_that_cannot_be_reached_is_a_sentence(tmp_path: Path) -> None:
    assert "cannot reach the hub" in refused("model", "org/tiny")  # the tests' environment forbids it


def test_a_model_too_large_for_the_worker_is_refused_before_its_weights_are_downloaded(
    online: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online.add("model", "org/large", model(tmp_path / "m"))
    monkeypatch.setattr(kept, "free", lambda: 100_000)
    error = refused("model", "org/large")
    assert "in float32 it needs about 0.0 GB" in error and "Use a worker with more memory or COMPUTE_DTYPE" in error
    assert not [r for r in online.requests if "safetensors" in r]


def test_a_model_that_leaves_no_room_on_the_disk_is_not_downloaded(
    online: hub.Hub, tmp_path: Path, settings: Any
) -> None:
    online.add("model", "org/tiny", model(tmp_path / "m"))
    settings.UPLOAD_RESERVE_BYTES = 1 << 60
    assert "free space" in refused("model", "org/tiny")
    assert not [asked for asked in online.requests if "safetensors" in asked and "resolve" in asked]


def test_memory_is_reckoned_from_the_dtype_on_the_disk_and_the_runs() -> None:
    check = lambda **config: bootable.check_memory(config, 4 * 10**9, "bfloat16", 3 * 10**9, "cuda", "it")  # noqa: E731
    check(dtype="float32")  # a billion parameters
    with pytest.raises(bootable.LanguageModelError, match="2.0 billion parameters: in bfloat16 it needs about 4.6 GB"):
        check(torch_dtype="bfloat16")


def test_a_folder_is_looked_at_again_where_the_worker_is(tmp_path: Path, settings: Any) -> None:
    outside, root = model(tmp_path / "outside"), tmp_path / "root"
    root.mkdir()
    settings.SOURCE_ROOTS = [str(root)]
    (root / "link").symlink_to(outside)
    for path in (outside, root / "link", root / ".." / "outside"):
        assert "give an absolute path below" in refused("model", str(path), "folder")
    shutil.copytree(outside, root / "m")
    assert added("model", str(root / "m"), "folder").made_lm is not None


# ---- text ----------------------------------------------------------------------------------------------


def uploaded(lm: LanguageModel, content: bytes, name: str, folder: Path, **options: Any) -> dict[str, Any]:
    (folder / "upload").write_bytes(content)
    sha256, size = additions.keep_text(folder / "upload")
    return {"source": name, "origin": "upload", "lm": lm, "text_sha256": sha256, "text_bytes": size, "options": options}


def table(path: Path, *texts: str) -> bytes:
    parquet.write_table(pa.table({"text": list(texts), "n": list(range(len(texts)))}), path)
    return path.read_bytes()


def documents(dataset: Dataset) -> list[str]:
    return list(Document.objects.filter(dataset_id=dataset.pk).order_by("index").values_list("name", flat=True))


def test_the_same_text_gives_the_same_dataset_however_it_comes(
    lm: LanguageModel, online: hub.Hub, tmp_path: Path
) -> None:
    lines = "".join(json.dumps({"text": TEXT}) + "\n" for _ in range(3)).encode()
    forms = {
        "a.jsonl": lines, "a.jsonl.gz": gzip.compress(lines), "a.parquet": table(tmp_path / "t.parquet", *[TEXT] * 3),
        "a.jsonl.zst": bytes(pa.compress(lines, codec="zstd", asbytes=True)),
    }  # fmt: skip
    hashes = set()
    for name, content in forms.items():
        row = tried(additions.ask("dataset", name=name, **uploaded(lm, content, name, tmp_path, ctx_len=16)))
        assert row.made_dataset is not None, row.error
        hashes.add(row.made_dataset.sha256)
        assert documents(row.made_dataset) == [f"{name}:{i}" for i in (1, 2, 3)]
    online.add("dataset", "org/text", {"data/train-0.jsonl": lines, "README.md": b"", "data/test-0.jsonl": b"{}"})
    row = added("dataset", "org/text", lm=lm, options={"ctx_len": 16})
    assert row.made_dataset is not None and {row.made_dataset.sha256} == hashes
    assert documents(row.made_dataset) == [f"data/train-0.jsonl:{i}" for i in (1, 2, 3)]
    expected = contexts.tokenize(
        [(str(i), TEXT) for i in range(3)], registry.language_model.load_tokenizer(lm.source), 16
    )
    stored = store.read_contexts(row.made_dataset, 0, row.made_dataset.n_contexts)
    assert (stored == expected.tokens).all()


def test_files_of_the_hub_are_fetched_until_there_is_enough_and_not_kept(
    lm: LanguageModel, online: hub.Hub, settings: Any
) -> None:
    line = json.dumps({"text": TEXT * 5}).encode() + b"\n"
    left = settings.VAR_DIR / "incoming" / "hub-999999-killed"
    left.mkdir(parents=True)
    online.add("dataset", "org/text", {f"train-{i:02}.jsonl": line for i in range(20)})
    row = added("dataset", "org/text", lm=lm, options={"ctx_len": 16, "max_tokens": 160})
    assert row.made_dataset is not None and row.made_dataset.n_tokens == 160
    assert not list((settings.VAR_DIR / "incoming").glob("hub-*"))


TEXTLESS: list[tuple[dict[str, bytes], dict[str, Any], str]] = [
    ({"a.bin": b"x"}, {}, "holds no text that can be read here: it has a.bin"),
    ({"loader.py": b"x"}, {}, "with a script, which is never run here: .*refs/convert/parquet"),
    ({"en/a.jsonl": b"", "de/a.jsonl": b""}, {}, r"has several parts \(de, en\): name one as files, such as de/\*"),
    ({"train.jsonl": b"{}"}, {"split": "test"}, "has no file of a split 'test': it has train.jsonl"),
    ({"train.jsonl": b"{}"}, {"files": "en/*"}, "no file of org/text[0-9] that can be read matches 'en/"),
    ({"train.jsonl": b'{"text": 1}\n'}, {"field": "text"}, "'text' in line 1 of train.jsonl is not text"),
    ({"train.jsonl": b'{"a": "x", "b": "y"}\n'}, {}, "train.jsonl does not say where its text is: .*'a', 'b'"),
    ({"train.jsonl": b""}, {}, "fewer than 16 tokens, not one context"),
    ({"train.jsonl.gz": b"x"}, {}, "train.jsonl.gz is damaged"),
    ({"train.parquet": b"PAR1"}, {}, "train.parquet cannot be read as Parquet"),
    ({"train.txt": b"\xff"}, {}, "train.txt is not UTF-8 text .line 1."),
]


def test_text_of_the_hub_that_cannot_be_used_is_a_sentence(lm: LanguageModel, online: hub.Hub, settings: Any) -> None:
    for number, (files, options, sentence) in enumerate(TEXTLESS):
        online.add("dataset", f"org/text{number}", files)
        error = refused("dataset", f"org/text{number}", lm=lm, options={"ctx_len": 16, **options})
        assert re.search(sentence, error), (files, error)
    assert not list((settings.VAR_DIR / "incoming").glob("hub-*"))


def test_a_part_or_a_split_of_a_repository_is_chosen(lm: LanguageModel, online: hub.Hub) -> None:
    rows = {f"{part}/{split}-0.jsonl": json.dumps({"text": f"{part} {TEXT}"}).encode() for part in ("de", "en")
            for split in ("train", "test")}  # fmt: skip
    online.add("dataset", "org/text", rows)
    for options, files in [({"files": "en/*"}, ["en/test-0.jsonl:1", "en/train-0.jsonl:1"]),
                           ({"files": "*/test-*"}, ["de/test-0.jsonl:1", "en/test-0.jsonl:1"])]:  # fmt: skip
        row = added("dataset", "org/text", lm=lm, options={"ctx_len": 16, **options})
        assert row.made_dataset is not None and documents(row.made_dataset) == files
        Dataset.objects.filter(name="mine").delete()


def test_a_text_is_read_again_for_another_language_model(lm: LanguageModel, tmp_path: Path) -> None:
    other = registry.register_lm("bytes", str(model(tmp_path / "m")))
    row = tried(additions.ask("dataset", name="words", **uploaded(lm, TEXT.encode(), "a.txt", tmp_path, ctx_len=16)))
    assert row.made_dataset is not None, row.error
    again = tried(additions.for_other_lm(row.made_dataset, other))
    assert again.made_dataset is not None, again.error
    assert (again.made_dataset.lm, again.made_dataset.name, again.made_dataset.ctx_len) == (other, "words", 16)
    assert again.made_dataset.n_tokens > row.made_dataset.n_tokens  # a byte is a token there
    additions.remove_dataset(row.made_dataset)
    assert storage.current().names(f"texts/{row.text_sha256}")  # the other may still be read again
    additions.remove_dataset(again.made_dataset)
    assert not storage.current().names(f"texts/{row.text_sha256}")


def test_a_tokenizer_of_another_model_is_a_sentence(tmp_path: Path) -> None:
    lm = registry.register_lm("small", str(model(tmp_path / "m", vocab_size=100)))
    error = refused("dataset", **uploaded(lm, b"xyz" * 99, "a.txt", tmp_path, ctx_len=16))
    assert "holds the tokenizer of another model" in error


def test_a_text_larger_than_memory_should_hold_is_stored_as_it_comes(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "_BLOCK", 4096)
    held: list[int] = []
    write = store.rows.contexts

    def watched(table: str, dataset: int, first: int, block: contexts.Contexts, *rest: Any) -> None:
        held.append(block.tokens.size)
        write(table, dataset, first, block, *rest)

    monkeypatch.setattr(store.rows, "contexts", watched)
    lines = "".join(json.dumps({"text": TEXT}) + "\n" for _ in range(300)).encode()
    row = tried(additions.ask("dataset", name="mine", **uploaded(lm, lines, "a.jsonl", tmp_path, ctx_len=16)))
    assert row.made_dataset is not None and sum(held) == row.made_dataset.n_tokens
    assert len(held) > 5 and max(held) < 40_000


# ---- cancelled, deleted, done twice --------------------------------------------------------------------


def test_a_cancelled_addition_leaves_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    row = additions.ask("dataset", name="mine", **uploaded(lm, TEXT.encode(), "a.txt", tmp_path))
    assert additions.cancel(row) and not additions.cancel(row)
    assert tried(row).state == State.CANCELLED and not Dataset.objects.exists()
    assert additions.again(row) and tried(row).state == State.DONE


def test_what_a_worker_brings_after_an_addition_was_cancelled_and_asked_for_again_is_not_taken(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = additions.ask("dataset", name="mine", **uploaded(lm, TEXT.encode(), "a.txt", tmp_path))
    register = registry.register_dataset

    def asked_again(*args: Any) -> Dataset:
        monkeypatch.undo()
        assert additions.cancel(row) and additions.again(row)
        assert worker.Held(Addition.objects.get(pk=row.pk), worker.ADD).take()  # another's, which took it from this
        return register(*args)

    monkeypatch.setattr(registry, "register_dataset", asked_again)
    messages.forget()
    worker.add(row.pk)
    row.refresh_from_db()
    assert (row.state, row.made_dataset) == (State.RUNNING, None)
    messages.forget()
    worker.add(row.pk)
    assert tried(row).state == State.DONE


def test_an_addition_that_ends_workers_is_given_up(lm: LanguageModel, tmp_path: Path) -> None:
    row = additions.ask("dataset", name="mine", **uploaded(lm, TEXT.encode(), "a.txt", tmp_path))
    Addition.objects.filter(pk=row.pk).update(state=State.RUNNING, tries=taking.MAX_TRIES)
    assert "workers ended over this" in tried(row).error


def test_a_message_that_comes_twice_changes_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    row = added("dataset", **uploaded(lm, TEXT.encode(), "a.txt", tmp_path))
    worker.add(row.pk)
    worker.add(10**6)
    assert Dataset.objects.filter(name="mine").count() == 1 and tried(row).attempts == 1
