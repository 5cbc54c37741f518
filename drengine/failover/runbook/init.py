"""A first runbook from what is registered: it can be run once its launch settings are filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class KnownSource:
    """A source as the store knows it: its volumes' sizes by name."""

    name: str
    volumes: Mapping[str, int]


def initial_runbook(name: str, sources: Sequence[KnownSource], *, driver: str) -> str:
    """A runbook's text.

    Args:
        name: of the runbook.
        sources: in the order in which they start, each in a wave of its own.
        driver: of all launches.

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
        volumes = ", ".join(f"{volume} ({human_bytes(size)})" for volume, size in source.volumes.items())
        lines += [
            f"  {_text(source.name)}:   # {volumes or 'no volume yet'}",
            "    # fence:   # switches it off when its agent does not answer; without it such a failover stops",
            f"    #   command: [/usr/local/bin/power-off, {_text(source.name)}]",
            "    launch:",
            f"      driver: {_text(driver)}",
            "      settings:",
            *(
                f"        {line.format(name=source.name)}"
                for line in _LAUNCH.get(driver, ("{{}}   # see the driver's documentation",))
            ),
        ]
    lines.append("waves:   # each starts when the one above is through")
    for source in sources:
        lines += [
            f"  - name: {_text(source.name)}",
            f"    sources: [{_text(source.name)}]",
            "    # before:   # steps before its servers start; those of the first wave come before anything is fenced",
            '    #   - approval: {prompt: "Start the failover?"}',
            "    # then:   # steps after they have started",
            f'    #   - http: {{url: "http://${{{source.name}.address}}/health", contains: ok}}',
        ]
    return "\n".join(lines) + "\n"


def _text(name: str) -> str:
    """A checked name as YAML: quoted where it would mean something else."""
    return f'"{name}"' if name[0].isdigit() or name in ("true", "false", "null") else name
