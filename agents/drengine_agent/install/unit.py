"""The unit for systemd, with every privilege that the agent has no use for taken away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drengine_agent.install.places import CACHE, CONFIG, RUNTIME, STATE
from drengine_agent.program import PROGRAM

CAPABILITIES = (
    "CAP_SYS_ADMIN",  # freeze file systems, mount bpffs
    "CAP_BPF",
    "CAP_PERFMON",
    "CAP_DAC_READ_SEARCH",  # open any mount point, to freeze it; read any volume
    "CAP_IPC_LOCK",  # the freeze's watchdog stays in memory
    "CAP_SYS_RESOURCE",  # the same before kernel 5.11, for maps
    "CAP_SYS_NICE",  # and runs when it must
    "CAP_SYS_PTRACE",  # tell which program and unit listens on a port
    "CAP_KILL",  # end a hook that hangs and runs as another user
    "CAP_SETUID",  # hooks that change to a database's user
    "CAP_SETGID",
)

UNIT_TEXT = """\
# Written by `drengine-agent install`. Change it by a drop-in (systemctl edit drengine-agent): upgrades keep those.
[Unit]
Description=drengine agent: replicates this server's disks to an Outpost
After=network-online.target local-fs.target
Wants=network-online.target

[Service]
Type=notify
ExecStart={command} run --config {config}
ExecReload=/bin/kill -HUP $MAINPID
{directories}
# SIGTERM ships what is captured, within the option `drain`; what is left stays marked in the kernel or the journal.
TimeoutStopSec=60
# Only the agent itself is ever killed: the process that thaws frozen file systems must outlive it, and ends by itself.
KillMode=process
OOMPolicy=continue
OOMScoreAdjust=-500
Restart=on-failure
RestartSec=5
# Mistakes in the configuration, other disks under a volume's name, kernels that can't track: for a person to see.
RestartPreventExitStatus=50 71 72 73 76 78 80 93

User=root
UMask=0077
LimitNOFILE=65536
LimitMEMLOCK=infinity
NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
DevicePolicy=closed
DeviceAllow=block-* {devices}
# Nothing that is mounted may be hidden from the agent, or it would not be frozen: no PrivateTmp, no ProtectHome=yes.
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writable}
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
KeyringMode=private

[Install]
WantedBy=multi-user.target
"""


def unit_text(
    *,
    command: str = str(PROGRAM),
    state_directory: Path = STATE,
    writes_volumes: Sequence[Path] | None = None,
    holds_identity: bool = False,
) -> str:
    """The unit.

    Args:
        command: starts the agent.
        state_directory: where it keeps its state.
        writes_volumes: with tracker `nbd`: the volumes, which the agent writes for its clients.
        holds_identity: the agent keeps its certificate fresh below STATE, wherever its state is.
    """
    directories = [f"RuntimeDirectory={RUNTIME.name}", f"CacheDirectory={CACHE.name}"]
    writable = ["-/sys/fs/bpf"]
    if state_directory == STATE:
        directories += [f"StateDirectory={STATE.name}", "StateDirectoryMode=0700"]
    elif state_directory.is_relative_to(RUNTIME):
        directories.append("RuntimeDirectoryPreserve=yes")
    else:
        writable.append(str(state_directory))
    if holds_identity and state_directory != STATE:
        directories.append(f"StateDirectory={STATE.name}")
    if writes_volumes:
        writable += [str(path) for path in writes_volumes if not path.is_relative_to("/dev")]
    return UNIT_TEXT.format(
        command=command,
        config=CONFIG,
        directories="\n".join(directories),
        capabilities=" ".join(CAPABILITIES),
        devices="rw" if writes_volumes else "r",
        writable=" ".join(writable),
    )
