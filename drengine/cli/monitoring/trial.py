"""`drengine monitoring notify`: try whether notices arrive."""

from __future__ import annotations

import typer

from drengine.cli.common import JsonOption
from drengine.cli.run_options import RegistryOptions
from drengine.config import BAD_CONFIG
from drengine.failover.config import load_orchestrator_config
from drengine.model.errors import DrengineError
from drengine.notifications import Notice, Topic, open_notifier
from drengine.notifications.notifier import NOT_DELIVERED
from drengine.terminal import emit_json
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)
PATIENCE_SECONDS = 60.0


@app.command()
@grouped
def notify(json: JsonOption = False, *, options: RegistryOptions) -> None:
    """Send a trial notice to each place of [notifications], and say whether it was taken."""
    config = load_orchestrator_config(options.config, options.given())
    if not config.notifications.to:
        raise DrengineError(BAD_CONFIG, "[notifications] names no place: `to` is empty")
    notifier = open_notifier(config.notifications, strict=True)
    notifier.notify(Notice(Topic.TEST, "drengine: a trial", "Notices about runs and readiness arrive here."))
    notifier.close(PATIENCE_SECONDS)
    sent, failed = notifier.counts["sent"], len(config.notifications.to) - notifier.counts["sent"]
    if json:
        emit_json({"sent": sent, "failed": failed})
    elif sent:
        print(f"{sent} taken, {failed} not" if failed else f"taken by all {sent}")
    if failed:
        raise DrengineError(NOT_DELIVERED, f"{failed} of {len(config.notifications.to)} places did not take the notice")
