"""Documents from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_backend.core.text import TextError, documents


def test_a_folder_is_read_in_the_order_of_its_names_with_the_suffixes_asked_for(tmp_path: Path) -> None:
    for name, text in {"b.txt": "two", "a/z.txt": "one é", "c.md": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert list(documents(tmp_path, suffixes=(".txt",))) == [("a/z.txt", "one é"), ("b.txt", "two")]


def test_one_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\ny")
    assert list(documents(tmp_path / "a.txt")) == [("a.txt", "x\ny")]


def test_a_jsonl_file_gives_a_document_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "é", "body": "1"}\n{"text": "", "body": "2"}\n', encoding="utf-8")
    assert list(documents(tmp_path / "a.jsonl")) == [("a.jsonl:1", "é"), ("a.jsonl:2", "")]
    assert list(documents(tmp_path / "a.jsonl", "body")) == [("a.jsonl:1", "1"), ("a.jsonl:2", "2")]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"body": "x"}', "line 2 of .* is not a JSON object with a field 'text'"),
        (b"[1]", "line 2 of .* is not a JSON object"),
        (b"nonsense", "line 2 of .* is not a JSON object"),
        (b'{"text": "\xff"}', "line 2 of .* is not a JSON object"),
        (b'{"text": null}', "'text' in line 2 of .* is not text"),
    ],
)
def test_a_line_that_holds_no_text_is_named(tmp_path: Path, line: bytes, sentence: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' + line + b"\n")
    with pytest.raises(TextError, match=sentence):
        list(documents(tmp_path / "a.jsonl"))


def test_what_cannot_be_read_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    for path, suffixes, sentence in [
        (tmp_path / "a.bin", (), "a.bin is not UTF-8 text"),
        (tmp_path, (".txt",), "holds no files ending in .txt"),
        (tmp_path / "empty", (), "holds no files$"),
        (tmp_path / "missing.txt", (), "is neither a file nor a folder"),
        (tmp_path / "missing.jsonl", (), "is neither a file nor a folder"),
    ]:
        with pytest.raises(TextError, match=sentence):
            list(documents(path, suffixes=suffixes))
