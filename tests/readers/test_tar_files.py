"""Tars as downloaded: read from any place on, and hostile ones refused."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from pathlib import Path

import pytest

from pfi.errors import DataError
from pfi.readers.exports import is_archive, members, parts
from pfi.readers.inflate import RestartPoints
from pfi.readers.tar_files import is_tar

TEXT = b"".join(b"%08d the long ladder stands in the cellar\n" % n for n in range(40_000))

LINE = len(TEXT) // 40_000


def tar(path: Path, *infos: tarfile.TarInfo | str, form: str = "w:gz", data: bytes = TEXT) -> Path:
    with tarfile.open(path, form) as archive:  # type: ignore[call-overload]
        for info in infos:
            one = tarfile.TarInfo(info) if isinstance(info, str) else info
            if one.isreg() and not one.size:
                one.size = len(data)
            archive.addfile(one, io.BytesIO(data))
    return path


def everything(name: str) -> bool:
    return True


@pytest.mark.parametrize("form", ["w:gz", "w"])
def test_files_are_read_from_any_place(tmp_path: Path, form: str) -> None:
    long_name = "a/" * 60 + "Bücher.txt"
    path = tar(tmp_path / "a.tgz", "./b.txt", long_name, "b/._x", form=form)
    assert is_archive(path)
    found = members(path, everything)
    assert [member.name for member in found] == [long_name, "b.txt"]
    for member in found:
        assert member.size == len(TEXT)
        with member.open() as stream:
            assert stream.read() == TEXT
            stream.seek(LINE * 30_000)
            assert stream.read(8) == b"00030000"
            stream.seek(0)
            assert stream.readline() == TEXT[:LINE]
    assert [member.name for member in members(path, lambda name: name == "b.txt")] == ["b.txt"]


def test_other_files_are_no_tars(tmp_path: Path) -> None:
    for name, data in {
        "empty": b"", "text": b"x" * 1000, "zeros": bytes(1024),
        "gz": gzip.compress(b"a text in gzip" * 100), "broken": b"\x1f\x8b" + b"x" * 600,
    }.items():  # fmt: skip
        path = tmp_path / name
        path.write_bytes(data)
        assert not is_tar(path), name


def test_links_and_devices_are_no_files(tmp_path: Path) -> None:
    link = tarfile.TarInfo("secret.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("hard.txt")
    hard.type, hard.linkname = tarfile.LNKTYPE, "b.txt"
    device = tarfile.TarInfo("device")
    device.type = tarfile.CHRTYPE
    path = tar(tmp_path / "a.tgz", "b.txt", link, hard, device)
    assert [member.name for member in members(path, everything)] == ["b.txt"]


@pytest.mark.parametrize("name", ["../x.txt", "/etc/x", "a/../../x", "C:x", "a\\b"])
def test_names_outside_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="outside itself"):
        members(tar(tmp_path / "a.tgz", name), everything)


def test_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tgz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("zeros.txt")
        info.size = 200 << 20
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(DataError, match="would swell"):
        members(path, everything)


def test_a_header_that_claims_much_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 40 << 20
    body = info.tobuf(tarfile.GNU_FORMAT) + b"a" * (40 << 20)
    path = tmp_path / "a.tar"
    path.write_bytes(body + tarfile.TarInfo("b.txt").tobuf() + bytes(1024))
    with pytest.raises(DataError, match="cannot be read"):
        members(path, everything)


def test_a_chain_of_headers_is_refused(tmp_path: Path) -> None:
    pax = tarfile.TarInfo("x")
    pax.type, pax.size = tarfile.XHDTYPE, 512
    record = b"30 comment=" + b"x" * 18 + b"\n"
    path = tmp_path / "a.tar"
    path.write_bytes((pax.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")) * 5000)
    with pytest.raises(DataError, match="cannot be read"):
        members(path, everything)


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.99])
def test_a_tar_that_breaks_off_is_an_error(tmp_path: Path, cut: float) -> None:
    path = tar(tmp_path / "a.tgz", "a.txt", "b.txt")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(DataError):
        for member in members(path, everything):
            with member.open() as stream:
                stream.read()


def test_parts_of_an_export(tmp_path: Path) -> None:
    names = [f"takeout-20240501T000000Z-00{number}.tgz" for number in (2, 1)]
    for name in names:
        tar(tmp_path / name, name)
    (tmp_path / "takeout-20240501T000000Z-003.tgz").write_bytes(b"no tar")
    assert [path.name for path in parts(tmp_path / names[0])] == sorted(names)


def test_restart_points_are_bounded() -> None:
    points = RestartPoints(1)
    for position in range(1, 5000):
        points.add(position, position, zlib.decompressobj())
    assert len(points._at) <= 801
    before = points.before(4999)
    assert before is not None and before[0] <= 4999
