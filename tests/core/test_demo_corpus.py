"""The demo data set: which files of a standard library it holds, on every layout that Python comes in."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo import corpus

SOURCE = '"""A module."""\n\n\ndef main(argv=None):\n    return [name for name in argv or ()]\n'


def write(root: Path, path: str, text: str | bytes | None = None) -> None:
    """Create a file with its folders; text made from its path unless given, so that no two are alike."""
    content = SOURCE + f"# {path}\n" if text is None else text
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def paths(root: Path) -> list[str]:
    return [path for path, _ in corpus.documents(root)]


def test_this_pythons_library_gives_hundreds_of_files_and_megabytes_of_text() -> None:
    documents = list(corpus.documents())
    assert 500 < len(documents) < 900
    assert 8e6 < sum(len(text) for _, text in documents) < 14e6
    names = [path for path, _ in documents]
    assert names == sorted(set(names))
    assert {"argparse.py", "json/decoder.py", "unittest/case.py", "pydoc_data/topics.py"} <= set(names)


def test_two_readings_are_equal() -> None:
    assert list(corpus.documents()) == list(corpus.documents())


@pytest.mark.parametrize(
    "path",
    [
        "test/support/script.py",
        "unittest/test/case.py",
        "idlelib/idle_test/mock.py",
        "Distutils/Tests/build.py",
        "ctypes/test_fields.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "site-packages/numpy/core.py",
        "dist-packages/apt/cache.py",
        "json/__pycache__/decoder.cpython-312.pyc",
        "EXTERNALLY-MANAGED",
    ],
)
def test_tests_packages_and_build_settings_are_left_out(tmp_path: Path, path: str) -> None:
    write(tmp_path, "kept.py")
    write(tmp_path, path)
    assert paths(tmp_path) == ["kept.py"]


def test_names_that_only_contain_the_word_test_stay(tmp_path: Path) -> None:
    for path in ("unittest/case.py", "doctest.py", "contest/latest.py"):
        write(tmp_path, path)
    assert paths(tmp_path) == ["contest/latest.py", "doctest.py", "unittest/case.py"]


def test_tables_and_scraps_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "encodings/cp500.py", SOURCE + "decoding_table = ()\n")
    write(tmp_path, "encodings/cp501.py", SOURCE + "encoding = codecs.charmap_build(table)\n")
    write(tmp_path, "digits.py", "table = [\n" + "    123456, 789012,\n" * 20 + "]\n")
    write(tmp_path, "short.py", "x = 1\n")
    write(tmp_path, "encodings/utf_8.py")
    assert paths(tmp_path) == ["encodings/utf_8.py"]


def test_a_copy_under_another_name_appears_once(tmp_path: Path) -> None:
    write(tmp_path, "b.py", SOURCE)
    write(tmp_path, "a.py", SOURCE.replace("\n", "\r\n"))
    assert paths(tmp_path) == ["a.py"]


def test_line_ends_become_newlines_and_tabs_four_columns(tmp_path: Path) -> None:
    write(tmp_path, "a.py", b"if True:\r\n\treturn 1\rab\tcd\n" + SOURCE.encode())
    [(_, text)] = corpus.documents(tmp_path)
    assert text.startswith("if True:\n    return 1\nab  cd\n")


def test_files_that_are_not_utf_8_or_cannot_be_opened_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, "latin.py", SOURCE.encode() + b"# caf\xe9\n")
    (tmp_path / "dangling.py").symlink_to(tmp_path / "gone.py")
    (tmp_path / "folder.py").mkdir()
    write(tmp_path, "kept.py")
    assert paths(tmp_path) == ["kept.py"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_files_without_permission_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, "locked.py")
    (tmp_path / "locked.py").chmod(0)
    assert paths(tmp_path) == []


def test_a_folder_that_does_not_exist_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No Python source at .*nowhere"):
        list(corpus.documents(tmp_path / "nowhere"))


def test_validation_files_are_those_whose_hash_says_so_and_about_two_in_a_hundred() -> None:
    names = [f"package/module_{index}.py" for index in range(5000)]
    assert 70 < sum(map(corpus.is_validation, names)) < 130
    digest = int(hashlib.sha256(b"argparse.py").hexdigest()[:8], 16)
    assert corpus.is_validation("argparse.py") == (digest % 1000 < 20)


def test_importing_the_corpus_loads_nothing_outside_the_standard_library() -> None:
    code = "import sys, demo.corpus; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"torch", "numpy", "django", "transformers"}.isdisjoint(loaded.split())
