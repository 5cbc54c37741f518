"""Commands that are run for us: argv only, bounded in time and output, ended with everything that they started."""

from drengine.process.command import Finished, run_command
from drengine.process.marked import end_marked, find_marked, start_marked

__all__ = ["Finished", "end_marked", "find_marked", "run_command", "start_marked"]
