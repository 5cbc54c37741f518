"""Many agents, one target: all begin their initial copy at the same moment."""

from __future__ import annotations

import time
from functools import partial

from benchmarks.bench import MIB, Bench
from benchmarks.results import Contestant, Figure, Measured, Table, contest
from benchmarks.site import check_replica
from drengine.model.extents import BLOCK_BYTES


def measure(bench: Bench) -> list[Table]:
    """Seconds until the last one has its first durable point, for several numbers of agents with the same total."""
    counts = (1, 4) if bench.quick else (1, 5, 20)
    total = 64 * MIB if bench.quick else 640 * MIB
    figures: list[Figure] = []
    for count in counts:
        figures += contest([Contestant(_name(count), partial(_together, bench, count, total), ours=True)], 1)
    return [
        Table(
            "many_agents",
            f"{total // MIB} MiB from several agents at once to one target",
            "s",
            tuple(figures),
            baseline=_name(1),
            remark="From the first command to begin until the last source's point is durable; agents run already.",
        )
    ]


def _name(count: int) -> str:
    return "1 agent" if count == 1 else f"{count} agents"


def _together(bench: Bench, count: int, total_bytes: int) -> Measured:
    """Each agent has its part of the image's first bytes."""
    size = total_bytes // count // BLOCK_BYTES * BLOCK_BYTES
    with bench.site(bench.fresh("many")) as here:
        target = here.start_target()
        images, agents = [], []
        with bench.image.open("rb") as whole:
            for number in range(count):
                images.append(here.folder / f"{number}.img")
                images[-1].write_bytes(whole.read(size))
        for number, image in enumerate(images):
            agents.append(here.start_agent(target, f"source-{number}", {"disk": image}, paused=True))
        cpu = target.cpu_seconds(), sum(agent.cpu_seconds() for agent in agents)
        since_ns, begun = time.time_ns(), time.perf_counter()
        for agent in agents:
            agent.ask("resume")
        ended = max(target.wait_point(agent.source, since_ns) for agent in agents)
        note = (
            f"CPU: agents {sum(agent.cpu_seconds() for agent in agents) - cpu[1]:.2f} s, target "
            f"{target.cpu_seconds() - cpu[0]:.2f} s; resident: target {target.resident_bytes() >> 20} MiB, "
            f"an agent {agents[0].resident_bytes() >> 20} MiB"
        )
        wire = sum(agent.wire_bytes() for agent in agents)
        for agent, image in zip(agents, images, strict=True):
            check_replica(target, agent.source, image)
    return Measured(ended - begun, wire, note)
