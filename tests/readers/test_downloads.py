"""Exports as downloaded: several parts, any place of a member, and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import random
import zipfile
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfi.errors import DataError
from pfi.readers.exports import all_members, members, parts
from pfi.readers.inflate import GZIP, Inflated, RestartPoints


def archive(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as written:
        for name, data in files.items():
            written.writestr(name, data)
    return path


def everything(name: str) -> bool:
    return True


def test_an_export_in_several_parts_is_read_as_one(tmp_path: Path) -> None:
    first = archive(tmp_path / "takeout-20240501T000000Z-001.zip", {"Takeout/a.json": b"1"})
    archive(tmp_path / "takeout-20240501T000000Z-002.zip", {"Takeout/b.json": b"2"})
    archive(tmp_path / "takeout-20230101T000000Z-001.zip", {"Takeout/other.json": b"3"})
    tenth = archive(
        tmp_path / "takeout-20240501T000000Z-010.zip", {"Takeout/c": b"4", "Takeout/a.json": b"5"}
    )
    (tmp_path / "takeout-20240501T000000Z-003.zip").write_bytes(b"no zip")
    assert [path.name[-7:-4] for path in parts(first)] == ["001", "002", "010"]
    assert parts(tenth) == parts(first)
    found = all_members(parts(first), everything)
    assert [member.name for member in found] == ["Takeout/a.json", "Takeout/b.json", "Takeout/c"]
    with found[0].open() as stream:
        assert stream.read() == b"1"
    alone = archive(tmp_path / "notes.zip", {"a.md": b"x"})
    assert parts(alone) == [alone] and parts(tmp_path) == [tmp_path]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2])
def test_a_member_is_read_from_any_place(tmp_path: Path, method: int) -> None:
    data = b"".join(b"line %d\n" % random.Random(n).randrange(10**9) for n in range(20_000))
    path = archive(tmp_path / "a.zip", {"x/y": data, "z": b"after"}, method)
    member = members(path, everything)[0]
    assert member.size == len(data)
    with member.open() as stream:
        for offset in (0, len(data) - 5, 7, 100_000, 99_999, len(data)):
            assert stream.seek(offset) == offset
            assert stream.read(11) == data[offset : offset + 11]
        stream.seek(0)
        assert stream.read() == data


def test_names_that_were_written_otherwise(tmp_path: Path) -> None:
    """macOS decomposes names; many programs do not say that theirs are UTF-8."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("Takeout/Me\u0301moire.json", b"1")
        written.writestr("__MACOSX/Takeout/._x", b"")
        written.writestr("Takeout/Entw__rfe.mbox", b"2")
    path.write_bytes(path.read_bytes().replace(b"Entw__rfe", "Entw\u00fcrfe".encode()))
    names = [member.name for member in members(path, everything)]
    assert names == ["Takeout/Entw\u00fcrfe.mbox", "Takeout/M\u00e9moire.json"]
    with members(path, everything)[0].open() as stream:
        assert stream.read() == b"2"


def test_damage_is_found_however_it_is_read(tmp_path: Path) -> None:
    data = os.urandom(200_000)
    path = archive(tmp_path / "a.zip", {"x": data})
    raw = bytearray(path.read_bytes())
    raw[100_000] ^= 1
    path.write_bytes(raw)
    with members(path, everything)[0].open() as stream, pytest.raises(DataError, match="checksum"):
        stream.read()


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    """As in D. Fifield's zip bomb, where all entries share the same compressed bytes."""
    path = archive(tmp_path / "a.zip", {"x": os.urandom(50_000), "y": b"1"}, zipfile.ZIP_STORED)
    raw = path.read_bytes()
    at = raw.index(b"PK\x01\x02")
    entry = raw[at : at + 46 + 1]
    many = raw[:at] + entry * 3
    end = bytearray(raw[raw.index(b"PK\x05\x06") :])
    end[8:10] = end[10:12] = (3).to_bytes(2, "little")
    end[12:16] = (len(entry) * 3).to_bytes(4, "little")
    path.write_bytes(many + bytes(end))
    with pytest.raises(DataError, match="overlap"):
        members(path, everything)


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    folder = tmp_path / "folder"
    (folder / "a" / "b" / "c").mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    (folder / "a" / "b" / "c" / "deep.txt").write_text("x")
    (folder / "a" / "near.txt").write_text("x")
    assert [m.name for m in members(folder, everything)] == ["a/near.txt"]
    assert [m.name for m in members(folder, everything, depth=9)] == [
        "a/b/c/deep.txt", "a/near.txt",
    ]  # fmt: skip


PIECES = st.lists(st.binary(max_size=3000), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(PIECES, st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 500)), max_size=8))
def test_seeking_gives_what_reading_gives(
    pieces: list[bytes], reads: list[tuple[int, int]]
) -> None:
    whole = b"".join(pieces)
    packed = b"".join(gzip.compress(piece) for piece in pieces)

    def opener() -> IO[bytes]:
        return io.BytesIO(packed)

    with io.BufferedReader(Inflated(opener, GZIP, points=RestartPoints(100)), 64) as stream:
        assert stream.read() == whole
        for offset, count in reads:
            offset = min(offset, len(whole))
            stream.seek(offset)
            assert stream.read(count) == whole[offset : offset + count]
