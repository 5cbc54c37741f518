"""Which ways to capture there are: ours, and those that installed packages bring as entry points `drengine.trackers`.

Each is a class derived from `capture.capture.Capture`. This module knows names and places only, so that the
configuration can be checked without loading one.
"""

from __future__ import annotations

from drengine.config.options import BAD_CONFIG
from drengine.plugins import Plugins

OURS = {
    "nbd": "drengine_agent.capture.tap.capture:TapCapture",
    "ebpf": "drengine_agent.capture.ebpf.capture:EbpfCapture",
    "scan": "drengine_agent.capture.scan.capture:ScanCapture",
}
TRACKERS = Plugins("drengine.trackers", "tracker", OURS, BAD_CONFIG)
