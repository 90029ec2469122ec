"""Documents from files."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from sae_backend.core import text
from sae_backend.core.text import TextError, documents


def test_a_folder_is_read_in_the_order_of_its_names_with_the_suffixes_asked_for(tmp_path: Path) -> None:
    for name, content in {"b.txt": "two", "a/z.txt": "one é", "c.md": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
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
        (b'{"text": NaN}', "'text' in line 2 of .* is not text"),
        (b'{"a\\u0000": "x"}', r"it has text in 'a\\x00'"),
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


# ---- fields and columns --------------------------------------------------------------------------------


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, **columns: object) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_the_field_of_the_text_is_found_where_its_name_is_usual_or_it_is_alone(tmp_path: Path) -> None:
    for row, found in [({"id": 1, "text": "a", "url": "u"}, "a"), ({"n": 1, "poem": "b"}, "b"),
                      ({"content": "c", "title": "t"}, "c")]:  # fmt: skip
        assert [t for _, t in documents(lines(tmp_path / "a.jsonl", row))] == [found]
        columns = {name: [value] for name, value in row.items()}
        assert [t for _, t in documents(table(tmp_path / "a.parquet", **columns))] == [found]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_field_that_is_not_there_or_not_clear_names_those_that_are(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    row = {"title": "t", "poem": "p", "n": 1}
    lines(path, row) if suffix == "jsonl" else table(path, **{k: [v] for k, v in row.items()})
    for field, sentence in [("", "does not say where its text is"), ("body", "body"), ("n", "'n'")]:
        with pytest.raises(TextError, match=sentence) as caught:
            list(documents(path, field))
        assert "'title', 'poem'" in str(caught.value) and "'n'," not in str(caught.value)


def test_what_is_null_is_left_out(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": None}, {"text": "x"})
    assert [*documents(path, "text")] == [("a.jsonl:2", "x")]
    assert [*documents(table(tmp_path / "a.parquet", text=[None, "x", None]))] == [("a.parquet:2", "x")]


def test_parquet_is_read_in_order_and_without_its_other_columns(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", text=[f"row {i}" for i in range(700)], n=list(range(700)))
    assert [*documents(path)] == [(f"a.parquet:{i + 1}", f"row {i}") for i in range(700)]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [({"n": [1.0, float("nan")]}, "no column of text"), ({"text": [["a"], ["b"]]}, "no column of text"),
     ({"text": [b"a", b"b"]}, "no column of text")],
)  # fmt: skip
def test_parquet_of_other_types_says_that_it_has_no_text(
    tmp_path: Path, columns: dict[str, object], sentence: str
) -> None:
    with pytest.raises(TextError, match=sentence):
        list(documents(table(tmp_path / "a.parquet", **columns)))


def test_parquet_that_unpacks_to_too_much_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "a.parquet", text=["x" * 1000] * 8)
    monkeypatch.setattr(text, "LARGEST_COLUMN", 100)
    with pytest.raises(TextError, match="row group 0 of a.parquet is too large"):
        list(documents(path))


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"PAR1" + b"\xff" * 300 + b"PAR1"])
def test_damaged_parquet_is_a_sentence(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(damage)
    with pytest.raises(TextError, match="a.parquet cannot be read as Parquet: "):
        list(documents(tmp_path / "a.parquet"))


def test_every_bit_turned_in_parquet_is_a_sentence_or_text(tmp_path: Path) -> None:
    whole = table(tmp_path / "a.parquet", text=[f"row {i}" for i in range(20)]).read_bytes()
    for place in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= 0x55
        (tmp_path / "b.parquet").write_bytes(broken)
        with suppress(TextError):
            assert all(isinstance(t, str) for _, t in documents(tmp_path / "b.parquet"))


# ---- hostile and large ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sentence"),
    [(b'{"text": ' + b"[" * 10**6, "nests too deeply"),
     (b'{"text": 1' + b"0" * 5000 + b"}", "a number in it has thousands of digits"),
     (b'[{"text": "x"}]', "one object on each line"), (b'{"text": {"a": "b"}}', "is not text but")],
)  # fmt: skip
def test_json_made_to_hurt_is_a_sentence_with_its_line(tmp_path: Path, line: bytes, sentence: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n\n' + line + b"\n")
    with pytest.raises(TextError, match=f"line 3 of a.jsonl.*{sentence}"):
        list(documents(tmp_path / "a.jsonl", "text"))


def test_halves_of_characters_that_json_can_spell_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud83db"}\n')
    assert [*documents(tmp_path / "a.jsonl")] == [("a.jsonl:1", "a?b")]


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(text.LONGEST_LINE * 50)
    tracemalloc.start()
    with pytest.raises(TextError, match="line 1 of a.jsonl is longer than 64 MB"):
        list(documents(tmp_path / "a.jsonl"))
    assert tracemalloc.get_traced_memory()[1] < 3 * text.LONGEST_LINE
    tracemalloc.stop()


def test_bytes_that_are_no_utf8_are_named_by_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"line\n" * 500_000 + b"caf\xe9\n")
    with pytest.raises(TextError, match=r"a.txt is not UTF-8 text \(line 500001\)"):
        list(documents(tmp_path / "a.txt"))


def test_a_long_text_comes_in_pieces_cut_between_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "\ufeff" + "".join(f"line {i} é\r\n" for i in range(5000)) + "x" * 30_000
    (tmp_path / "a.txt").write_bytes(whole.encode())
    monkeypatch.setattr(text, "PIECE", 10_000)
    found = list(documents(tmp_path / "a.txt"))
    assert {name for name, _ in found} == {"a.txt"} and max(len(piece) for _, piece in found) <= 10_000
    assert "".join(piece for _, piece in found) == whole[1:].replace("\r\n", "\n")
    assert found[1][1].startswith("\nline ")


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w") as file:
        for _ in range(300):
            file.write(json.dumps({"text": "word " * 40_000}) + "\n")  # 60 MB
    tracemalloc.start()
    assert sum(len(piece) for _, piece in documents(tmp_path / "a.jsonl")) == 300 * 200_000
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def zstandard(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard)])
def test_packed_files_are_read_as_they_unpack(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(b'{"text": "one"}\n{"text": "two"}\n'))
    (tmp_path / f"b.txt{suffix}").write_bytes(pack(b"three"))
    assert [t for _, t in documents(tmp_path)] == ["one", "two", "three"]
    for content in (b"not packed", pack(b'{"text": "one"}\n' * 1000)[:-20]):
        (tmp_path / f"a.jsonl{suffix}").write_bytes(content)
        with pytest.raises(TextError, match=f"a.jsonl{suffix} is damaged"):
            list(documents(tmp_path / f"a.jsonl{suffix}"))


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard)])
@pytest.mark.parametrize("content", [b"\n", b"x"])
def test_a_bomb_is_not_unpacked_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, pack: Callable[[bytes], bytes], content: bytes
) -> None:
    monkeypatch.setattr(text, "BOMB_BYTES", 1 << 20)
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / f"{name}{suffix}").write_bytes(pack(content * (1 << 26)))
        with pytest.raises(TextError, match="unpacks to more than 200 times its size"):
            for _ in documents(tmp_path / f"{name}{suffix}", "text"):
                pass
