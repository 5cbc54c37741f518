"""Having a source's volumes to oneself: nobody else may write them while they are preserved, nor be there at all while
they are overwritten.

A tap has them anyway: opened exclusively and locked. What another tracker only reads is opened for writing in
addition, which the kernel refuses for a device that is mounted or otherwise claimed; files are asked for a lease first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from drengine.model.errors import DrengineError
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.scan.tracker import StillnessLease
from drengine_agent.errors import REVERSE_REFUSED
from drengine_agent.fencing.users import users_of


def _in_use(volume: Volume, error: DrengineError) -> str:
    """Why a volume can't be had, and what has to be stopped for it, in order."""
    order = users_of(volume.path).order
    return f"{error.message}; in this order: {order}" if order else error.message


@contextmanager
def possessed(volumes: Mapping[int, Volume], *, vouched: bool = False) -> Iterator[dict[int, Volume]]:
    """The volumes, writable and ours alone; what was dirty in the page cache is on the disk.

    Args:
        volumes: as the capture has them.
        vouched: somebody vouches for the stillness of files whose file system knows no leases.

    Raises:
        DrengineError: REVERSE_REFUSED naming what is in the way.
    """
    with ExitStack() as stack:
        ours: dict[int, Volume] = {}
        for number, volume in volumes.items():
            if volume.writable:
                ours[number] = volume
                continue
            if volume.path.is_file() and not vouched:
                lease = StillnessLease([volume.path])
                if not lease.release():
                    raise DrengineError(REVERSE_REFUSED, f"volume {volume.name}: {volume.path} is open for writing")
            try:
                opened = Volume.open(
                    number,
                    volume.name,
                    volume.path,
                    writable=True,
                    identity=volume.identity,
                    evidence=volume.evidence,
                    declared=volume.declared,
                )
            except DrengineError as error:
                raise DrengineError(REVERSE_REFUSED, _in_use(volume, error), hint=error.hint) from error
            stack.callback(opened.close)
            ours[number] = opened
        try:
            for volume in ours.values():
                volume.sync()
        except OSError as error:
            raise DrengineError(REVERSE_REFUSED, f"volume {volume.name} can't be synced: {error.strerror}") from error
        yield ours
