"""Archives of people with good and bad intentions: what is unpacked, and what is refused with which sentence."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_backend.intake import archives
from sae_backend.intake.archives import ArchiveError

LIMIT = 100 << 20


def unpacked(path: Path, limit: int = LIMIT) -> dict[str, bytes]:
    into = path.with_suffix(".out")
    archives.unpack(path, path.name, into, limit)
    return {p.relative_to(into).as_posix(): p.read_bytes() for p in into.rglob("*") if p.is_file()}


def refused(path: Path, limit: int = LIMIT) -> str:
    with pytest.raises(ArchiveError) as error:
        unpacked(path, limit)
    assert not [p for p in path.parent.parent.rglob("escaped*")]
    return str(error.value)


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def tarred(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_a_folder_is_unpacked_from_each_kind_of_archive(tmp_path: Path, name: str) -> None:
    members = ("sae/cfg.json", b"{}"), ("sae/deep/w.safetensors", b"weights")
    path = tmp_path / name
    made = zipped(path, *members) if name == "a.zip" else tarred(path, *members, mode="w:gz" if "gz" in name else "w")
    assert archives.is_archive(made, name)
    assert unpacked(made) == {"sae/cfg.json": b"{}", "sae/deep/w.safetensors": b"weights"}


def test_the_zips_of_torch_and_numpy_and_plain_files_are_no_archives(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    (tmp_path / "a.zip").write_bytes(b"no archive at all")
    assert not [p.name for p in tmp_path.iterdir() if archives.is_archive(p, p.name)]


@pytest.mark.parametrize(
    "name",
    ["../escaped", "a/../../escaped", "/escaped", "C:/escaped", "..\\escaped", "a//escaped", "a/./b", "..", "x" * 300],
)
@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_name_that_is_no_plain_relative_path_is_refused(
    tmp_path: Path, make: Callable[..., Path], name: str
) -> None:
    (tmp_path / "in").mkdir()
    assert "no plain relative path" in refused(make(tmp_path / "in" / "a.zip", (name, b"x")))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("escaped")
    info.type, info.linkname = kind, "/etc/passwd"
    assert "which is a link, device or sparse file" in refused(tarred(tmp_path / "a.tar", info))


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("escaped")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "which is a link or device" in refused(zipped(tmp_path / "a.zip", (info, b"/etc/passwd")))


@pytest.mark.parametrize("make", [zipped, tarred])
def test_two_members_of_one_name_are_refused_whatever_their_case(tmp_path: Path, make: Callable[..., Path]) -> None:
    path = make(tmp_path / "a.zip", ("a/cfg.json", b"1"), ("a/CFG.json", b"2"))
    assert "two members called 'a/CFG.json'" in refused(path)


def test_a_file_and_a_folder_of_one_name_are_refused(tmp_path: Path) -> None:
    assert "a file and a folder" in refused(tarred(tmp_path / "a.tar", ("a", b"1"), ("a/b", b"2")))


def test_a_bomb_is_refused_by_its_ratio_and_by_the_limit_before_it_fills_the_disk(tmp_path: Path) -> None:
    zeros = bytes(100 << 20)
    bomb = zipped(tmp_path / "a.zip", ("a", zeros))
    assert "times its size" in refused(bomb)
    assert sum(p.stat().st_size for p in (tmp_path / "a.out").rglob("*")) < 90 << 20
    assert "more than 10 MB" in refused(zipped(tmp_path / "b.zip", ("b", zeros)), limit=10 << 20)
    with gzip.open(tmp_path / "c.tar.gz", "wb") as packed:
        packed.write(tarred(tmp_path / "c.tar", ("c", zeros)).read_bytes())
    assert "times its size" in refused(tmp_path / "c.tar.gz")


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("a", bytes(1000)))
    data = path.read_bytes().replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(data)
    assert "damaged" in refused(path)


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    """Two entries of the directory that read the same bytes: how small zips become huge without nesting."""
    path = zipped(tmp_path / "a.zip", ("a", b"x" * 100), ("b", b"x" * 100), packing=zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist[1].header_offset = archive.filelist[0].header_offset
        archive._didModify = True  # type: ignore[attr-defined]
    assert "overlap" in refused(path)


def test_an_extended_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 32
    with gzip.open(tmp_path / "a.tar.gz", "wb") as packed:
        packed.write(info.tobuf() + bytes(20 << 20))
    assert "a header of" in refused(tmp_path / "a.tar.gz")


def test_too_many_entries_and_too_deep_folders_are_refused(tmp_path: Path) -> None:
    many = [(f"f{i}", b"") for i in range(archives.MAX_ENTRIES + 1)]
    assert "more than 2,000 entries" in refused(zipped(tmp_path / "a.zip", *many))
    assert "more than 2,000 entries" in refused(tarred(tmp_path / "a.tar", *many))
    assert "8 deep" in refused(zipped(tmp_path / "b.zip", ("/".join("abcdefghi"), b"")))


def test_an_encrypted_zip_and_a_torn_archive_say_so(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("a", b"x" * 50))
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    assert "encrypted" in refused(path)
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(bytes(range(256)) * 100)[:200])
    assert "damaged or no archive" in refused(tmp_path / "b.tar.gz")


def test_what_packers_add_is_left_out(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("a/cfg.json", b"{}"), ("__MACOSX/a/._cfg.json", b"x"), ("a/.DS_Store", b"x"))
    assert list(unpacked(path)) == ["a/cfg.json"]


def test_an_archive_without_files_says_so(tmp_path: Path) -> None:
    for members in [(), (("a/", b""),), (("a/.DS_Store", b"x"),)]:
        assert refused(zipped(tmp_path / "a.zip", *members)).startswith("a.zip has no files in it")
