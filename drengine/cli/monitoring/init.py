"""`drengine monitoring init`: scrape configuration, rules, dashboards."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.monitoring.token import keep_token
from drengine.cli.run_options import RegistryOptions
from drengine.config import ADDRESS, Address, parse_duration
from drengine.failover.config import OrchestratorConfig, load_orchestrator_config
from drengine.failover.doors import open_people
from drengine.failover.reading.reader import read_runbook, read_runbook_text
from drengine.failover.registry import Registry
from drengine.failover.registry.values import StoredRunbook
from drengine.failover.runbook.values import Runbook
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.monitoring.files import ASIDE, MONITORING_FILES, State, Wanted, write_files
from drengine.monitoring.plan import CA_FILE, PROMETHEUS_FILE, TOKEN_FILE, site_files
from drengine.monitoring.prometheus import Site
from drengine.monitoring.rules import Promise
from drengine.terminal import emit_json, note, show_table
from drengine.terminal.options import grouped
from drengine.transport.networks import is_loopback

app = typer.Typer(add_completion=False)

FOLDER = Path("/etc/drengine/monitoring")
DISCOVERY_PATH = "/api/v1/monitoring/targets"


@dataclass(frozen=True)
class SiteOptions(RegistryOptions):
    """Where things are, as Prometheus and Grafana reach them."""

    url: Annotated[
        str, typer.Option("--url", help="The orchestrator's REST API, as Prometheus reaches it; default: its `rest`.")
    ] = ""
    cacert: Annotated[
        Path | None, typer.Option("--cacert", help="CA that signs that API's certificate (PEM); it is copied.")
    ] = None
    alertmanager: Annotated[
        list[str] | None, typer.Option("--alertmanager", help="HOST:PORT of an Alertmanager; may be repeated.")
    ] = None
    prometheus: Annotated[str, typer.Option("--prometheus", help="URL of Prometheus, as Grafana reaches it.")] = (
        "http://127.0.0.1:9090"
    )
    at: Annotated[
        Path | None, typer.Option("--at", help="Where the directory will lie on Grafana's host; default: as here.")
    ] = None
    runbook: Annotated[
        list[Path] | None, typer.Option("--runbook", help="A runbook that was not run yet; may be repeated.")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace what somebody changed, too.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; say what would be written.")] = False
    json: JsonOption = False


@app.command()
@grouped
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write.")] = FOLDER,
    *,
    options: SiteOptions,
) -> None:
    """Write what Prometheus and Grafana need for this site: scrape configuration, rules, dashboards.

    A second run brings up to date what nobody changed, and leaves alone what somebody did.
    """
    config = load_orchestrator_config(options.config, options.given())
    promises = _promises(_kept_runbooks(config), options.runbook or [])
    ca = _read_ca(options.cacert)
    site = Site(
        orchestrator=str(_orchestrator_metrics(config)),
        discovery_url=_api(config, options.url) + DISCOVERY_PATH,
        has_ca=ca is not None,
        alertmanagers=_alertmanagers(options.alertmanager or []),
    )
    wanted = site_files(site, promises, prometheus_url=options.prometheus, at=(options.at or folder).absolute())
    if ca is not None:
        wanted[CA_FILE] = Wanted(ca)
    states = write_files(folder, wanted, force=options.force, dry_run=options.dry_run)
    with open_people(config, SystemClock()) as people:
        states[TOKEN_FILE] = keep_token(people, config.state, folder / TOKEN_FILE, dry_run=options.dry_run)
    _tell(folder, states, promises, list(_to_do(config, options, folder, states)), options)


def _kept_runbooks(config: OrchestratorConfig) -> list[StoredRunbook]:
    """Those that the orchestrator knows; where it keeps nothing yet, nothing is made."""
    file = config.registry_url.removeprefix("sqlite:///")
    if file != config.registry_url and not Path(file).exists():
        return []
    with closing(Registry.open(config.registry_url, clock=SystemClock())) as registry:
        return registry.runbooks()


def _promises(kept: list[StoredRunbook], more: list[Path]) -> list[Promise]:
    books: dict[str, Runbook] = {}
    for stored in kept:
        try:
            books[stored.name] = read_runbook(stored.text, where=stored.name)
        except DrengineError as error:
            note(f"runbook {stored.name} is left out: {error.message}")
    for path in more:
        book = read_runbook(read_runbook_text(path), where=str(path))
        books[book.name] = book
    return [
        Promise(
            name,
            tuple(sorted(book.sources)),
            parse_duration(book.objectives.rpo),
            parse_duration(book.objectives.rto),
        )
        for name, book in sorted(books.items())
    ]


def _read_ca(path: Path | None) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path else None
    except (OSError, UnicodeError) as error:
        raise DrengineError(MONITORING_FILES, f"{path}: {error}") from error


def _orchestrator_metrics(config: OrchestratorConfig) -> Address:
    """As Prometheus reaches it; where none is configured, where the notes say that it shall be."""
    found = config.monitoring.orchestrator or config.metrics or Address("127.0.0.1", 9441)
    return Address(socket.getfqdn(), found.port) if found.host in ("0.0.0.0", "::") else found


def _api(config: OrchestratorConfig, url: str) -> str:
    if url:
        return url.rstrip("/")
    host, port = config.rest.host, config.rest.port
    shown = Address(socket.getfqdn(), port) if host in ("0.0.0.0", "::") else config.rest
    return f"{'https' if config.rest_tls.certificate else 'http'}://{shown}"


def _alertmanagers(texts: list[str]) -> tuple[str, ...]:
    try:
        return tuple(str(ADDRESS.parse(text)) for text in texts)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _to_do(config: OrchestratorConfig, options: SiteOptions, folder: Path, states: dict[str, State]) -> Iterator[str]:
    """What is left for a person, in order."""
    for name, state in states.items():
        if state is State.KEPT:
            yield f"{name} was changed by somebody and stays; take what is new from {name}{ASIDE}, or use --force"
    if config.metrics is None:
        yield 'the orchestrator serves no metrics: put metrics = "127.0.0.1:9441" into its file and restart it'
    if not config.monitoring.targets:
        yield "no target is watched: name their metrics in [monitoring] targets"
    if is_loopback(config.rest.host) and not options.url:
        yield "REST is on loopback, so Prometheus has to run here; docs/operations.md, Monitoring, says how else"
    if config.rest_tls.certificate and not options.cacert:
        yield "Prometheus checks the API's certificate by the CAs of its host; name another one with --cacert"
    yield f"start Prometheus with --config.file={folder.absolute() / PROMETHEUS_FILE}"
    yield f"let Grafana read {folder.absolute() / 'grafana/provisioning'} (GF_PATHS_PROVISIONING)"


def _tell(
    folder: Path, states: dict[str, State], promises: list[Promise], to_do: list[str], options: SiteOptions
) -> None:
    if options.json:
        files = [{"file": name, "state": state.value} for name, state in states.items()]
        told = {"directory": str(folder.absolute()), "dry_run": options.dry_run, "files": files}
        emit_json({**told, "runbooks": [asdict(each) for each in promises], "to_do": to_do})
        return
    show_table(("file", "state"), [(name, state.value) for name, state in states.items()], title=str(folder))
    if options.dry_run:
        note("nothing was written")
    for each in promises:
        note(f"runbook {each.runbook}: RPO {each.rpo_seconds:g} s, RTO {each.rto_seconds:g} s")
    if not promises:
        note("no runbook is known yet: run this again when there is one, or name it with --runbook")
    for number, line in enumerate(to_do, start=1):
        note(f"{number}. {line}")
