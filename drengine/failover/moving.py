"""Which host a run is told to make the home of which source: what was typed, checked against the runbook."""

from __future__ import annotations

from collections.abc import Sequence

from drengine.failover.errors import BAD_ONTO
from drengine.failover.options import NewHome
from drengine.failover.plan import sources_of
from drengine.failover.runbook.values import Mode, Runbook
from drengine.model.errors import DrengineError
from drengine.model.names import check_name

_MODES = (Mode.FAILBACK, Mode.REPROTECT, Mode.MIGRATION)


def read_onto(mode: Mode, book: Runbook, onto: Sequence[str], disks: Sequence[str]) -> dict[str, NewHome]:
    """New homes by source.

    Args:
        mode, book: of the run.
        onto: `HOST`, where the runbook has one source; or `SOURCE=HOST`.
        disks: `VOLUME=DISK`, where one source moves; or `SOURCE/VOLUME=DISK`.

    Raises:
        DrengineError: BAD_ONTO, BAD_NAME.
    """
    if not onto:
        if disks:
            raise DrengineError(BAD_ONTO, f"disk {disks[0][:80]!r} is named, and no host")
        return {}
    if mode not in _MODES:
        raise DrengineError(BAD_ONTO, f"a {mode.value} goes to no new host; {', '.join(_MODES)} do")
    sources, hosts = sources_of(book), dict[str, str]()
    for each in onto:
        source, _, host = each.rpartition("=")
        if not source and len(sources) > 1:
            raise DrengineError(BAD_ONTO, f"{each[:80]!r}: which of {', '.join(sources)} goes there? Say SOURCE=HOST")
        source = source or sources[0]
        if source not in sources or source in hosts:
            why = "has it twice" if source in hosts else f"has no such source, but {', '.join(sources)}"
            raise DrengineError(BAD_ONTO, f"source {source[:80]!r}: the command {why}")
        if host in hosts.values():
            raise DrengineError(BAD_ONTO, f"host {host[:80]!r} can be the home of one source only")
        hosts[source] = check_name(host, what="host")
    if mode is Mode.MIGRATION and len(hosts) < len(sources):
        left = ", ".join(each for each in sources if each not in hosts)
        raise DrengineError(
            BAD_ONTO, f"a migration moves all sources of its runbook to new hosts, or none; {left} stay"
        )
    placed: dict[str, dict[str, str]] = {source: {} for source in hosts}
    for each in disks:
        volume, _, disk = each.partition("=")
        source, _, volume = volume.rpartition("/")
        source = source or (next(iter(hosts)) if len(hosts) == 1 else "")
        if source not in placed or not volume or not disk or volume in placed[source]:
            raise DrengineError(BAD_ONTO, f"disk {each[:80]!r} is not VOLUME=DISK, or SOURCE/VOLUME=DISK, said once")
        placed[source][volume] = disk
    return {source: NewHome(host=host, disks=placed[source]) for source, host in hosts.items()}
