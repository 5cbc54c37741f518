"""Whoever changes an audit log is found out: by the chain, by the head, or by an anchor kept elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.audit import AuditLog, Keep
from drengine.audit.entry import chain, genesis
from drengine.audit.files import HEAD_FILE, Head, file_path, files, first_line
from drengine.audit.verify import Anchor, Checked, read_anchors, read_entries, verify

COUNT = 24
NO_HASH, LOG = "0" * 64, "12" * 16
KEEP = Keep(file_bytes=1500)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("written") / "audit"
    log = AuditLog.open(directory, keep=KEEP)
    for number in range(COUNT):
        log.record(who=f"person:ann-{number}", did="run.approve", on=f"r{number}", details={"step": number})
    return directory


@pytest.fixture
def copies(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("copies")
    yield folder
    shutil.rmtree(folder)


def copied(written: Path, folder: Path) -> Path:
    """A fresh copy, in the place of the one before."""
    copy = folder / "audit"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(written, copy)
    return copy


def lines_of(directory: Path) -> list[tuple[int, bytes]]:
    return [
        (file, line)
        for file in files(directory)
        for line in file_path(directory, file).read_bytes().splitlines(keepends=True)
    ]


def write_lines(directory: Path, lines: list[tuple[int, bytes]]) -> None:
    for file in files(directory):
        file_path(directory, file).write_bytes(b"".join(line for where, line in lines if where == file))


def number_at(directory: Path, file: int, position: int) -> int:
    """The entry at a byte of a file; that of its first line is the first."""
    before = file_path(directory, file).read_bytes()[:position].count(b"\n")
    first = sum(len(file_path(directory, each).read_bytes().splitlines()) - 1 for each in range(1, file)) + 1
    return first + max(0, before - 1)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_found(written: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    copy = copied(written, tmp_path_factory.getbasetemp())
    file = data.draw(st.sampled_from(files(copy)))
    content = bytearray(file_path(copy, file).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    number, in_first_line = number_at(copy, file, position), position <= content.find(b"\n")
    file_path(copy, file).write_bytes(content)
    checked = verify(copy)
    assert checked.broken
    if in_first_line:
        return  # which of two files is the wrong one may be open
    assert (checked.broken_number, checked.broken_file) == (number, file_path(copy, file).name)
    assert [line.entry.number for line in read_entries(copy)][: number - 1] == list(range(1, number))


CHANGES = ("remove", "double", "swap", "insert", "cut", "move")


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_removed_added_and_reordered_lines_are_found(
    written: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    copy = copied(written, tmp_path_factory.getbasetemp())
    lines = lines_of(copy)
    index = data.draw(st.integers(0, len(lines) - 1))
    other = data.draw(st.integers(0, len(lines) - 1).filter(lambda each: each != index))
    file, line = lines[index]
    match data.draw(st.sampled_from(CHANGES)):
        case "remove":
            del lines[index]
        case "double":
            lines.insert(index, lines[index])
        case "swap":
            lines[index], lines[other] = (file, lines[other][1]), (lines[other][0], line)
        case "insert":
            lines.insert(index, (file, lines[other][1]))
        case "cut":
            lines[index] = (file, line[: data.draw(st.integers(0, len(line) - 1))])
        case "move":
            lines.insert(other, lines.pop(index))
            lines[other] = (lines[other - 1][0], line)
    write_lines(copy, lines)
    if lines_of(copy) == lines_of(written):
        return  # each file has its lines in the order that they had
    assert verify(copy).broken


@pytest.mark.parametrize("file", range(1, 5))
def test_a_missing_file_is_found(written: Path, copies: Path, file: int) -> None:
    copy = copied(written, copies)
    assert len(files(copy)) == 4
    file_path(copy, file).unlink()
    assert verify(copy).broken
    log = AuditLog.open(copy, keep=KEEP)
    log.record(who="person:ann", did="run.begin")
    assert verify(copy).broken, "also once somebody has written again"


def test_a_shorter_log_is_found_also_when_somebody_goes_on_with_it(written: Path, copies: Path) -> None:
    copy = copied(written, copies)
    newest = file_path(copy, max(files(copy)))
    content = newest.read_bytes()
    newest.write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])
    assert verify(copy).broken_number == COUNT
    AuditLog.open(copy).record(who="person:ann", did="run.begin")
    assert "ends too early" in verify(copy).broken and verify(copy).broken_number == COUNT
    assert [line.entry.did for line in read_entries(copy)][-2:] == ["audit.lost", "run.begin"]


def test_a_new_beginning_is_found_without_the_old_one(written: Path, copies: Path) -> None:
    copy = copied(written, copies)
    second = file_path(copy, 2)
    file_path(copy, 1).unlink()
    checked = verify(copy)
    assert "not by retention" in checked.broken and checked.broken_number == checked.removed + 1
    lines = second.read_bytes().splitlines(keepends=True)
    second.write_bytes(first_line(Head.begin(verify(written).log), 2) + b"".join(lines[1:]))
    assert verify(copy).broken


def rewritten(written: Path, copies: Path, number: int) -> Path:
    """What somebody makes who may write everything and knows the format: an entry changed, the chain made anew."""
    copy = copied(written, copies)
    head = Head.begin(verify(copy).log)
    for file in files(copy):
        _, *lines = file_path(copy, file).read_bytes().splitlines(keepends=True)
        content = first_line(head, file)
        for line in lines:
            text = line[65:-1].replace(f'"on":"r{number - 1}"'.encode(), b'"on":"other"')
            hashed = chain(head.hash, text)
            content += hashed.encode() + b" " + text + b"\n"
            head = replace(head, number=head.number + 1, hash=hashed)
        head = replace(head, file=file, end=len(content))
        file_path(copy, file).write_bytes(content)
    (copy / HEAD_FILE).write_bytes(head.encode())
    return copy


@pytest.mark.parametrize("anchored", [1, 11, COUNT])
def test_a_chain_made_anew_is_found_by_an_anchor(written: Path, copies: Path, anchored: int) -> None:
    hashes = {line.entry.number: line.head.hash for line in read_entries(written)}
    anchor = Anchor(hashes[anchored], anchored)
    assert (verify(written, [anchor]).broken, verify(written, [anchor]).anchors) == ("", 1)
    copy = rewritten(written, copies, anchored)
    assert verify(copy).broken == ""
    assert verify(copy, [anchor]).broken_number == anchored
    assert verify(copy, [Anchor(hashes[anchored])]).broken
    later = rewritten(written, copies, anchored + 1)
    assert verify(later, [anchor]).broken == "", "an anchor vouches for what is before it"


def test_a_cut_log_with_its_head_put_right_is_found_by_an_anchor(written: Path, copies: Path) -> None:
    *_, before, last = read_entries(written)
    copy = copied(written, copies)
    newest = file_path(copy, before.head.file)
    assert last.head.file == before.head.file
    newest.write_bytes(newest.read_bytes()[: before.head.end])
    (copy / HEAD_FILE).write_bytes(before.head.encode())
    assert verify(copy).broken == ""
    checked = verify(copy, [Anchor(last.head.hash, COUNT)])
    assert (checked.broken_number, f"entry {COUNT}" in checked.broken) == (COUNT, True)


def test_an_anchor_of_what_retention_removed_can_not_be_compared(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path, keep=Keep(file_bytes=1500, bytes_max=4000))
    hashes = {}
    for number in range(1, 60):
        log.record(who="person:ann", did="run.approve", on=str(number))
        hashes |= {line.entry.number: line.head.hash for line in read_entries(tmp_path)}
    checked = verify(tmp_path, [Anchor(hashes[1], 1), Anchor(hashes[max(hashes)], max(hashes))])
    assert (checked.broken, checked.anchors, checked.not_compared) == ("", 1, 1)
    assert verify(tmp_path, [Anchor(NO_HASH, 2)]).broken == ""
    assert verify(tmp_path, [Anchor(NO_HASH, checked.removed)]).broken, "the end of what was removed is still known"


def test_what_a_crash_left_is_told_of_and_nothing_else_is(written: Path, copies: Path) -> None:
    copy = copied(written, copies)
    newest = file_path(copy, max(files(copy)))
    with newest.open("ab") as file:
        file.write(b"0123 half an entry")
    assert (verify(copy).broken, verify(copy).unfinished_bytes) == ("", 18)
    AuditLog.open(copy).record(who="person:ann", did="run.begin")
    assert (verify(copy).broken, verify(copy).mended) == ("", 1)
    newest.write_bytes(newest.read_bytes() + b"!")
    assert verify(copy).broken, "what was left is part of the chain from then on"


def test_whole_lines_behind_the_end_are_no_crash(written: Path, copies: Path) -> None:
    copy = copied(written, copies)
    with file_path(copy, max(files(copy))).open("ab") as file:
        file.write(b"0123 an entry\n")
    assert verify(copy).broken
    AuditLog.open(copy).record(who="person:ann", did="run.begin")
    assert verify(copy).broken


def test_anchors_are_read_from_what_was_received() -> None:
    hashed = "ab" * 32
    text = (
        f"<110>1 2026-11-29T20:00:00Z host drengine - - - audit log={LOG} number=12 hash={hashed}\n"
        f'{{"log": "{LOG}", "number": 13, "at": "2026", "hash": "{hashed}"}}\nother line\n'
    )
    assert read_anchors(text) == [Anchor(hashed, 12, LOG), Anchor(hashed, 13, LOG)]
    with pytest.raises(ValueError, match="no anchor"):
        read_anchors("nothing")


def test_an_empty_log_is_in_order(tmp_path: Path) -> None:
    AuditLog.open(tmp_path)
    log = verify(tmp_path).log
    assert verify(tmp_path) == Checked(log, 0, 0, genesis(log), 0, 0, 0, 0, 0)


def test_anchors_of_other_logs_do_not_count(written: Path) -> None:
    *_, last = read_entries(written)
    ours = Anchor(last.head.hash, COUNT, last.head.log)
    other = Anchor(NO_HASH, COUNT, LOG)
    assert (verify(written, [ours, other]).broken, verify(written, [ours, other]).anchors) == ("", 1)
    assert verify(written, [other]).broken == f"no anchor is of this log, {last.head.log}"


def test_files_of_another_log_are_found(written: Path, copies: Path, tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path / "other", keep=KEEP)
    for number in range(COUNT):
        log.record(who=f"person:ann-{number}", did="run.approve", on=f"r{number}", details={"step": number})
    for name in (HEAD_FILE, "000000000001.log", "000000000003.log"):
        copy = copied(written, copies)
        shutil.copy(tmp_path / "other" / name, copy)
        assert verify(copy).broken
