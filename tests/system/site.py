"""A site whose commands are typed as tests type them."""

from __future__ import annotations

import json
from typing import Any

from demo import site
from tests.typed import AGENT, DRENGINE, typed

PROGRAMS = {"drengine.cli.main": DRENGINE, "drengine_agent": AGENT}


class Site(site.Site):
    """See the demo's."""

    def run(self, *arguments: str, seconds: float = 90.0) -> Any:
        """See the demo's. `seconds`: how long it may take."""
        program, *words = arguments
        if program not in PROGRAMS:
            return super().run(*arguments)
        done = typed(PROGRAMS[program], *words, "--json", env=self._environment(), cwd=self.folder, seconds=seconds)
        if done.returncode:
            raise site.StoryFailed(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr or done.stdout}")
        return json.loads(done.stdout)
