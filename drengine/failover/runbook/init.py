"""A first runbook from what is registered: it can be run once its launch settings are filled in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from drengine.failover.runbook.launches import (
    EC2,
    STANDBY,
    KnownSource,
    checks_inside,
    ec2_minutes,
    launch_settings,
    own_services,
    yaml_path,
    yaml_word,
)
from drengine.model.names import check_name
from drengine.terminal import human_bytes


def initial_runbook(
    name: str, sources: Sequence[KnownSource], *, driver: str, host: str = "", fence: Sequence[str] = ()
) -> str:
    """A runbook's text.

    Args:
        name: of the runbook.
        sources: in the order in which they start, each in a wave of its own.
        driver: of all launches.
        host: recovery host of all launches.
        fence: what switches a source off, `{source}` standing for the name of its host; empty: said to be missing.

    Raises:
        DrengineError: BAD_NAME.
    """
    check_name(name, what="runbook")
    lines = [
        "# yaml-language-server: $schema=runbook.schema.json",
        "# For that: drengine runbook schema > runbook.schema.json",
        f"# Check it with: drengine runbook validate {name}.yaml   Try it with: drengine drill {name}.yaml",
        "version: 1",
        f"name: {yaml_word(name)}",
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
    yield f"  {yaml_word(name)}:   # {volumes or 'no volume yet'}"
    if fence:
        home, indent = source.home or name, "      "
        yield "    fence:   # switches it off when its agent does not answer, or only watches its disks"
        if home != name:
            yield f"      homes:   # it lives on {home}"
            yield f"        {yaml_word(home)}:"
            indent = "          "
        yield f"{indent}command: {json.dumps([word.replace('{source}', home) for word in fence])}"
    else:
        yield f"    # NO FENCE: a failover of {name} is BLOCKED (exit 107) when its agent does not answer, or only"
        yield "    # watches the disks (trackers ebpf, scan). Give what switches it off: power, hypervisor, switch."
        yield "    # fence:"
        yield f"    #   command: [/usr/local/bin/power-off, {yaml_word(name)}]"
    yield "    # services:   # what its agent stops and starts on the source itself, in the order in which they start;"
    yield "    #             # without them, or `start`, a failback ends as handed back, with nothing started there"
    yield from (f"    {line}" for line in own_services(source))
    yield "    launch:"
    yield f"      driver: {yaml_word(driver)}"
    if host:
        yield f"      host: {yaml_word(host)}"
    yield "      settings:"
    yield from (f"        {line}" for line in launch_settings(driver, source))
    if driver == EC2:
        yield f"      timeout: {ec2_minutes(source)}m   # its disks are copied before it starts"


def _wave(source: KnownSource, driver: str) -> Iterator[str]:
    name = source.name
    yield f"  - name: {yaml_word(name)}"
    yield f"    sources: [{yaml_word(name)}]"
    yield "    # before:   # steps before its servers start; those of the first wave come before anything is fenced"
    yield '    #   - approval: {prompt: "Start the failover?"}'
    if driver == STANDBY and source.mounts:
        yield "    then:   # steps after they have started"
        yield f"      - command: [ls, {', '.join(yaml_path(each.at) for each in source.mounts)}]"
        yield f"        inside: {yaml_word(name)}   # on the recovery host, in the network of this workload"
    else:
        yield "    # then:   # steps after they have started"
    yield from (f"    {line}" for line in (checks_inside(source) if driver == STANDBY else ()))
    yield f'    #   - http: {{url: "http://${{{name}.address}}/health", contains: ok}}'
