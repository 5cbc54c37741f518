"""Initial copy of the image: from "begin" to a durable recovery point, with every block's hash verified."""

from __future__ import annotations

import time

from benchmarks.bench import Bench
from benchmarks.peers import NBDCOPY, copies
from benchmarks.results import Contestant, Measured, Share, Table, contest
from benchmarks.site import Objects, check_replica

OURS, OURS_RAW = "drengine", "drengine, uncompressed"


def measure(bench: Bench) -> list[Table]:
    """Ours, compressed and raw, beside the peers' copies to a local destination."""
    ours = [
        Contestant(OURS, lambda: copy_once(bench, compression="adaptive"), ours=True),
        Contestant(OURS_RAW, lambda: copy_once(bench, compression="none"), ours=True),
    ]
    figures = contest([*ours, *copies(bench.image, bench.fresh("peers"))], bench.rounds)
    return [
        Table(
            "initial_copy",
            f"Initial copy of {bench.image_bytes >> 20} MiB",
            "s",
            figures,
            shares={OURS: Share(NBDCOPY, 1.1), OURS_RAW: Share(NBDCOPY, 1.1)},
            baseline=NBDCOPY,
            remark="Ours: two running daemons, from the command to begin until the point is in the target's catalogue; "
            "each replica was compared with the image afterwards. Peers: the whole command, destination synced.",
        )
    ]


def copy_once(bench: Bench, *, compression: str, encrypted: bool = False, objects: Objects | None = None) -> Measured:
    """One initial copy by scan, agent and target in processes of their own."""
    with bench.site(bench.fresh("copy")) as here:
        target = here.start_target(encrypted=encrypted, objects=objects)
        agent = here.start_agent(target, "source", {"disk": bench.image}, paused=True, compression=compression)
        agent_cpu, target_cpu = agent.cpu_seconds(), target.cpu_seconds()
        since_ns, begun = time.time_ns(), time.perf_counter()
        agent.ask("resume")
        seconds = target.wait_point("source", since_ns) - begun
        note = (
            f"CPU: agent {agent.cpu_seconds() - agent_cpu:.2f} s, target {target.cpu_seconds() - target_cpu:.2f} s; "
            f"resident {agent.resident_bytes() >> 20} and {target.resident_bytes() >> 20} MiB"
        )
        wire = agent.wire_bytes()
        check_replica(target, "source", bench.image)
    return Measured(seconds, wire, note)
