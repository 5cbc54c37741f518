"""Processes: commands that are run for us, ended with everything that they started; and what our own may run out of."""

from drengine.process.command import Finished, run_cancellable, run_command
from drengine.process.descriptors import descriptors_free, raise_descriptor_limit
from drengine.process.marked import end_marked, find_marked, marked, start_marked

__all__ = [
    "Finished",
    "descriptors_free",
    "end_marked",
    "find_marked",
    "marked",
    "raise_descriptor_limit",
    "run_cancellable",
    "run_command",
    "start_marked",
]
