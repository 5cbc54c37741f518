"""A recovery host's unit for systemd.

What it mounts must be mounted for the whole host, and what it starts must be free to serve. So it has no mount
namespace of its own, which most of systemd's protections would bring, and capabilities for workloads. What orders may
do is bounded by `[allow]` of its file.
"""

from __future__ import annotations

from pathlib import Path

from drengine_agent.install.places import CACHE, STANDBY
from drengine_agent.program import PROGRAM

CAPABILITIES = (
    "CAP_SYS_ADMIN",  # mount, loop devices, network namespaces
    "CAP_NET_ADMIN",  # loopback in a drill's network
    "CAP_SYS_PTRACE",  # read the environment of workloads, by which they are found again
    "CAP_KILL",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_AUDIT_WRITE",  # runuser
    "CAP_NET_BIND_SERVICE",  # workloads, from here on
    "CAP_SYS_CHROOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_IPC_LOCK",
)

UNIT_TEXT = """\
# Written by `drengine-agent standby install`. Change it by a drop-in (systemctl edit drengine-standby): upgrades keep
# those.
[Unit]
Description=drengine recovery host: attaches, mounts and starts workloads when told to
After=network-online.target local-fs.target modprobe@loop.service modprobe@fuse.service modprobe@nbd.service
Wants=network-online.target modprobe@loop.service modprobe@fuse.service modprobe@nbd.service

[Service]
Type=notify
ExecStart={command} standby run --config {config}
ExecReload=/bin/kill -HUP $MAINPID
{directories}
# Only its own process is ever ended: workloads, the disks that they use and hydration stay up, and are found again.
KillMode=process
OOMPolicy=continue
Restart=on-failure
RestartSec=5
# Mistakes in the configuration, and what permissions keep from it: for a person to see.
RestartPreventExitStatus=50 93 124 240

User=root
LimitNOFILE=65536
TasksMax=infinity
NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
DevicePolicy=closed
DeviceAllow=block-* rw
DeviceAllow=/dev/loop-control rw
DeviceAllow=/dev/fuse rw
# Its mounts are the host's: nothing here may give it a mount namespace (ProtectSystem, ProtectHome, PrivateTmp, ...).
RestrictNamespaces=net mnt
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @debug @module @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
KeyringMode=private

[Install]
WantedBy=multi-user.target
"""


def standby_unit_text(*, command: str = str(PROGRAM), state_directory: Path = STANDBY.state) -> str:
    """The unit.

    Args:
        command: starts the program.
        state_directory: where it keeps its state.
    """
    directories = [f"CacheDirectory={CACHE.name}"]
    if state_directory == STANDBY.state:
        directories += [f"StateDirectory={STANDBY.state.name}", "StateDirectoryMode=0700"]
    return UNIT_TEXT.format(
        command=command,
        config=STANDBY.config,
        directories="\n".join(directories),
        capabilities=" ".join(CAPABILITIES),
    )
