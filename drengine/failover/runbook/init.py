"""A first runbook from what is registered: it can be run once its launch settings are filled in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from drengine.model.names import check_name
from drengine.terminal import human_bytes

_LAUNCH: Mapping[str, Sequence[str]] = {
    "command": (
        "# A program on this host that reads the disk over NBD; DRENGINE_DISK_<VOLUME> holds its address.",
        "run: [/usr/local/bin/start-{name}]",
        "health: [/usr/local/bin/check-{name}]",
    ),
    "qemu": (
        "# The disks are booted as a virtual machine; in a drill without any network.",
        "memory_mib: 2048",
        "cpus: 2",
        'ready: "login:"',
    ),
}
STANDBY = "standby"
MOUNTED = ("ext", "xfs", "btrfs")
"""What a recovery host can mount as it is."""


@dataclass(frozen=True, slots=True)
class KnownSource:
    """A source as the store knows it.

    Attributes:
        volumes: their sizes by name.
        contents: what their first bytes are, by name: `ext`, `xfs`, `gpt`, ...; empty where that is not known.
    """

    name: str
    volumes: Mapping[str, int]
    contents: Mapping[str, str] = field(default_factory=dict)

    @property
    def mounts(self) -> dict[str, str]:
        """Where a recovery host mounts those volumes that have a file system, by volume."""
        found = [each for each in self.volumes if self.contents.get(each) in MOUNTED]
        return {volume: f"/srv/{self.name}/{volume}" for volume in found}


def initial_runbook(
    name: str, sources: Sequence[KnownSource], *, driver: str, host: str = "", fence: Sequence[str] = ()
) -> str:
    """A runbook's text.

    Args:
        name: of the runbook.
        sources: in the order in which they start, each in a wave of its own.
        driver: of all launches.
        host: recovery host of all launches.
        fence: what switches a source off, `{source}` standing for its name; empty: said to be missing.

    Raises:
        DrengineError: BAD_NAME.
    """
    check_name(name, what="runbook")
    lines = [
        "# yaml-language-server: $schema=runbook.schema.json",
        "# For that: drengine runbook schema > runbook.schema.json",
        f"# Check it with: drengine runbook validate {name}.yaml   Try it with: drengine drill {name}.yaml",
        "version: 1",
        f"name: {_text(name)}",
        'description: ""',
        "objectives:",
        "  rpo: 5s   # the longest data loss",
        "  rto: 5m   # the longest time until users work again",
        "sources:",
    ]
    for source in sources:
        lines += _source(source, driver, host, fence)
    lines.append("waves:   # each starts when the one above is through")
    for source in sources:
        lines += _wave(source, driver)
    return "\n".join(lines) + "\n"


def _source(source: KnownSource, driver: str, host: str, fence: Sequence[str]) -> Iterator[str]:
    name = source.name
    volumes = ", ".join(f"{volume} ({human_bytes(size)})" for volume, size in source.volumes.items())
    yield f"  {_text(name)}:   # {volumes or 'no volume yet'}"
    if fence:
        yield "    fence:   # switches it off when its agent does not answer, or only watches its disks"
        yield f"      command: {json.dumps([word.replace('{source}', name) for word in fence])}"
    else:
        yield f"    # NO FENCE: a failover of {name} is BLOCKED (exit 107) when its agent does not answer, or only"
        yield "    # watches the disks (trackers ebpf, scan). Give what switches it off: power, hypervisor, switch."
        yield "    # fence:"
        yield f"    #   command: [/usr/local/bin/power-off, {_text(name)}]"
    yield "    # services:   # what its agent stops and starts on the source itself, in the order in which they start;"
    yield "    #             # without them, or `start`, a failback ends as handed back, with nothing started there"
    yield f"    #   - {{name: {_text(name)}, stop: [systemctl, stop, {name}], start: [systemctl, start, {name}]}}"
    yield "    launch:"
    yield f"      driver: {_text(driver)}"
    if host:
        yield f"      host: {_text(host)}"
    yield "      settings:"
    lines = _standby(source) if driver == STANDBY else _LAUNCH.get(driver, ("{{}}   # see the driver's documentation",))
    yield from (f"        {line.format(name=name)}" for line in lines)


def _standby(source: KnownSource) -> Iterator[str]:
    """It attaches and mounts; what starts there is for who knows the workload."""
    yield "mounts:" if source.mounts else "mounts: []   # no file system was found at the beginning of a volume"
    for volume, at in source.mounts.items():
        yield f"  - {{{{volume: {_text(volume)}, at: {at}}}}}"
    for volume in source.volumes:
        if source.contents.get(volume) in ("gpt", "mbr"):
            yield f"# - {{{{volume: {_text(volume)}, partition: 1, at: /srv/{{name}}/{volume}}}}}   # it has partitions"
    yield "# start: [systemctl, start, {name}]   # in `drill` a program of its own: systemd starts outside its network"
    yield "# stop: [systemctl, stop, {name}]"
    yield "# health: [systemctl, is-active, {name}]"


def _wave(source: KnownSource, driver: str) -> Iterator[str]:
    name = source.name
    yield f"  - name: {_text(name)}"
    yield f"    sources: [{_text(name)}]"
    yield "    # before:   # steps before its servers start; those of the first wave come before anything is fenced"
    yield '    #   - approval: {prompt: "Start the failover?"}'
    if driver == STANDBY and source.mounts:
        yield "    then:   # steps after they have started"
        yield f"      - command: [ls, {', '.join(source.mounts.values())}]"
        yield f"        inside: {_text(name)}   # on the recovery host, in the network of this workload"
    else:
        yield "    # then:   # steps after they have started"
    yield f'    #   - http: {{url: "http://${{{name}.address}}/health", contains: ok}}'


def _text(name: str) -> str:
    """A checked name as YAML: quoted where it would mean something else."""
    return f'"{name}"' if name[0].isdigit() or name in ("true", "false", "null") else name
