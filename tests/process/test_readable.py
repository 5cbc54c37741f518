"""Waiting for descriptors, whatever their numbers."""

from __future__ import annotations

import fcntl
import os

import pytest

from drengine.process.descriptors import raise_descriptor_limit, readable


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue


def test_what_has_bytes_or_lost_its_other_end_can_be_read(pipe):
    reader, writer = pipe
    assert readable((reader,), 0.0) == set()
    os.write(writer, b"x")
    assert readable((reader,)) == {reader}
    os.read(reader, 1)
    os.close(writer)
    assert readable((reader,)) == {reader}


def test_descriptors_above_those_of_select_are_waited_for(pipe):
    raise_descriptor_limit()
    reader, writer = pipe
    high = fcntl.fcntl(reader, fcntl.F_DUPFD, 2000)
    try:
        os.write(writer, b"x")
        assert readable((high,), 10.0) == {high}
    finally:
        os.close(high)
