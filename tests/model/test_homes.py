"""Which disk of a new host takes which volume, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pytest

from drengine.model.errors import DrengineError
from drengine.model.homes import SpareDisk, place_volumes
from drengine.model.points import VolumeGeometry

GIB = 1 << 30
DATA, LOGS = VolumeGeometry(1, "data", "serial:1", GIB), VolumeGeometry(2, "logs", "serial:2", 5000)
B, C = SpareDisk("data", "/dev/sdb", GIB), SpareDisk("big", "/dev/sdc", GIB + 1)


@pytest.mark.parametrize(
    ("wanted", "offered", "disks", "placed"),
    [
        ([DATA], [B], {}, {"data": "data"}),
        ([DATA], [C], {}, {"data": "big"}),
        ([DATA], [C, B], {}, {"data": "data"}),
        ([DATA], [B, C], {"data": "/dev/sdc"}, {"data": "big"}),
        ([DATA, LOGS], [B, C], {"logs": "big"}, {"data": "data", "logs": "big"}),
    ],
)
def test_a_volume_goes_where_it_is_told_or_where_it_fits(
    wanted: Sequence[VolumeGeometry], offered: Sequence[SpareDisk], disks: Mapping[str, str], placed: dict[str, str]
) -> None:
    assert {name: disk.name for name, disk in place_volumes(wanted, offered, disks).items()} == placed


@pytest.mark.parametrize(
    ("offered", "disks", "told"),
    [
        ([B._replace(size_bytes=GIB - 1)], {}, f"data has {GIB} bytes, and disk data (/dev/sdb) only {GIB - 1}"),
        ([B, C], {"date": "big"}, "no volume 'date'; there are data, logs"),
        ([B, C], {"logs": "/dev/sdz"}, "offers no disk '/dev/sdz' for volume logs; it has data (/dev/sdb)"),
        ([B, C], {"logs": "data"}, "data and logs can't share disk data"),
        ([C], {}, "offers no disk 'data'"),
        ([], {}, "it has none"),
    ],
)
def test_what_does_not_fit_is_told(offered: Sequence[SpareDisk], disks: Mapping[str, str], told: str) -> None:
    with pytest.raises(DrengineError, match=re.escape(told)) as refused:
        place_volumes([DATA, LOGS], offered, disks)
    assert refused.value.kind.id == "new-home-unfit"
