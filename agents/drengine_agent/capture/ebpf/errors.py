"""The failures of the eBPF tracker's kernel side."""

from __future__ import annotations

from drengine.model.errors import error_kind

EBPF_UNAVAILABLE = error_kind(
    "ebpf-unavailable",
    76,
    "This kernel, or this process's privileges, can't run the eBPF tracker.",
    "`drengine-agent doctor` says what is missing; the trackers `nbd` and `scan` need neither.",
)
EBPF_REFUSED = error_kind(
    "ebpf-refused",
    77,
    "The eBPF tracker can't watch this device, or another process watches for this source already.",
    "The message names the device or the process; docs/ebpf.md lists what can be watched.",
)
