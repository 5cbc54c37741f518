"""What an agent leaves behind."""

from __future__ import annotations

import os
import shutil
import time

from tests.agent.install.host import host
from tests.agent.install.onefile import build_here
from tests.field.ground import Ground, Pair
from tests.field.trial import trial

MIB = 1 << 20
OF_THE_TRIAL = ("tmp:data", "tmp:started.log")


@trial(seconds_max=150)
def an_uninstalled_agent_leaves_nothing(ground: Ground) -> None:
    """Installed, run, killed, installed again, uninstalled on a host of its own: no file, pin or mount is left."""
    ground.needs_kernel()
    ground.needs("unshare", "nsenter", "mkfs.ext4")
    disk = ground.disk("data", 24 * MIB)
    ground.run("mkfs.ext4", "-q", disk)
    pair = Pair(ground, {"data": disk}, tracker="ebpf")
    pair.start_target()
    with host(ground.folder / "host") as there:
        there.run("rm", "-rf", "/var/cache/drengine-agent")  # of the machine below
        there.run("mkdir", "/tmp/data")
        there.run("mount", disk, "/tmp/data")
        shutil.copy(build_here(ground.folder / "drengine-agent"), there.root / "root/drengine-agent")
        before, pins = there.written(), there.run("ls", "/sys/fs/bpf").stdout
        words = ["--source", pair.source, "--target", f"127.0.0.1:{pair.port}", "--volume", f"data={disk}", "--yes"]
        for _ in range(2):
            there.run("./drengine-agent", "install", *words)
            service = there.start("drengine-agent", "run")
            (there.root / "tmp/data/file").write_bytes(ground.rng.randbytes(MIB))
            os.sync()
            seen = pair.newest()
            ground.until("a point", lambda seen=seen: pair.newest() != seen)
            service.kill()
            there.run("pkill", "-KILL", "-f", "drengine-agent run", check=False)
            service.wait(30)
        there.run("./drengine-agent", "uninstall", "--yes")
        time.sleep(0.5)
        after = {name: fact for name, fact in there.written().items() if not name.startswith(OF_THE_TRIAL)}
        wanted = {name: fact for name, fact in before.items() if not name.startswith(OF_THE_TRIAL)}
        assert after == wanted, f"left: {sorted(after.items() ^ wanted.items())}"
        assert there.run("ls", "/sys/fs/bpf").stdout == pins
        assert "drengine" not in there.run("cat", "/proc/mounts").stdout.replace(str(ground.folder), "")
        there.run("umount", "/tmp/data")
