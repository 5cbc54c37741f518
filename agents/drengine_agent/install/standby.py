"""Installing this host as a recovery host, and removing that again: the same plan as an agent's, at its own places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drengine import __version__
from drengine.enrolment.place import Place
from drengine.identity.names import Role
from drengine.model.errors import DrengineError
from drengine.terminal import note
from drengine_agent.install.acts import Act, Enrol, TryOrders
from drengine_agent.install.configuration import merged, toml_text
from drengine_agent.install.errors import INSTALL_CONFLICT, INSTALL_FAILED
from drengine_agent.install.places import CACHE, STANDBY, look, within
from drengine_agent.install.plan import Wanted, directories_of, plan_install, plan_uninstall
from drengine_agent.install.session import has_certificate
from drengine_agent.install.standby_unit import standby_unit_text
from drengine_agent.install.steps import HOST, TRY_SECONDS, carry_out, needs_root
from drengine_agent.install.wishes import installed_values
from drengine_agent.program import own_archive, start_command
from drengine_agent.standby.config import parse_standby_config
from drengine_agent.standby.programs import missing_programs


@dataclass(frozen=True, slots=True)
class StandbyWishes:
    """Options of `standby install`. What is empty was not said: it stays as it is, or gets its default.

    Attributes:
        tls: `certificate`, `key` and `ca`, for attaching disks and for the broker.
        roots: where disks may be mounted.
        token: with which the host gets its certificate; see `Service.identity`.
    """

    name: str = ""
    broker: str = ""
    site: str = ""
    data_networks: Sequence[str] = ()
    roots: Sequence[str] = ()
    tls: Mapping[str, Path] = field(default_factory=dict)
    token: str = ""

    def values(self, before: Mapping[str, Any], *, is_enrolled: bool) -> dict[str, Any]:
        """The configuration's values: those of `before` with what is wished."""
        files = {name: str(path.absolute()) for name, path in self.tls.items()}
        if not files and is_enrolled and "tls" not in before:
            place = Place(STANDBY.identity).files
            files = {"certificate": str(place.certificate), "key": str(place.key), "ca": str(place.ca)}
        changes: dict[str, Any] = {
            "name": self.name,
            "data_networks": list(self.data_networks),
            "tls": files,
            "allow": {"roots": list(self.roots)} if self.roots else {},
            "control": {
                **({"address": self.broker} if self.broker else {}),
                **({"site": self.site} if self.site else {}),
                **files,
            },
        }
        return merged(before, {key: value for key, value in changes.items() if value})


def install(
    wishes: StandbyWishes,
    root: Path,
    *,
    start: bool,
    wait_seconds: float,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> None:
    """Install, or change what was installed; without wishes the configuration stays as it is.

    With `wait_seconds` nothing is installed that does not get in at its broker.

    Raises:
        DrengineError: INSTALL_CONFLICT, INSTALL_FAILED, BAD_CONFIG, BROKER_UNREACHABLE, BROKER_REFUSED, and why there
            is no certificate.
    """
    needs_root(root, dry_run)
    here = root == HOST
    if here:
        _require_programs()
    before = installed_values(root, STANDBY.config)
    enrolled = here and has_certificate(STANDBY.identity, wishes.name or str(before.get("name", "")))
    enrols = here and bool(wishes.token) and not enrolled
    values = wishes.values(before, is_enrolled=enrols or enrolled)
    config = parse_standby_config(values)
    text = None if values == before else toml_text(values).encode()
    first: list[Act] = [Enrol(config.name, wishes.token, STANDBY.identity, Role.HOST)] if enrols else []
    if here and text is not None and wait_seconds:
        first.append(TryOrders(text, min(wait_seconds, TRY_SECONDS)))
    archive = own_archive()
    wanted = Wanted(
        __version__,
        "",
        config.state_directory,
        archive.read_bytes() if archive else None,
        text,
        standby_unit_text(command=start_command(), state_directory=config.state_directory).encode(),
        start=start,
        first=tuple(first),
        service=STANDBY,
    )
    plan = plan_install(wanted, look(root, directories_of(wanted), STANDBY))
    carry_out(plan, root, {}, dry_run=dry_run, yes=yes, json=json)


def uninstall(root: Path, *, purge: bool, dry_run: bool, yes: bool, json: bool) -> None:
    """Take everything away again; not while workloads are up, whose disks nobody could detach any more.

    Raises:
        DrengineError: INSTALL_CONFLICT, INSTALL_FAILED.
    """
    needs_root(root, dry_run)
    present = look(root, (STANDBY.state, STANDBY.identity, STANDBY.runtime, CACHE), STANDBY)
    state = Path(present.record.state_directory) if present.record else STANDBY.state
    instances = within(root, state / "instances")
    if instances.is_dir() and (found := sorted(each.name for each in instances.iterdir())):
        hint = "Bring them home or abort their runs at the orchestrator first: `drengine runs` lists them."
        raise DrengineError(INSTALL_CONFLICT, f"workloads are up on this host: {', '.join(found)}", hint=hint)
    if present.record is None and STANDBY.config not in present.files:
        note("no recovery host is installed here")
    carry_out(plan_uninstall(present, purge=purge), root, {}, dry_run=dry_run, yes=yes, json=json)


def _require_programs() -> None:
    """Disks can be attached one way or the other, and mounted; what else is missing is said.

    Raises:
        DrengineError: INSTALL_FAILED.
    """
    missing = missing_programs()
    fuse, kernel = {"nbdfuse", "fusermount3", "losetup"}, {"nbd-client"}
    attaches = not (fuse & missing.keys() and kernel & missing.keys())
    for program, use in missing.items():
        if not attaches or program in ("mount", "umount"):
            hint = "Install it: on Debian `apt install libnbd-bin fuse3`, which attach disks without a kernel driver."
            raise DrengineError(INSTALL_FAILED, f"{program} is not here: {use}", hint=hint)
        note(f"{program} is not here: {use}")
