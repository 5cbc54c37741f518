"""`drengine join-command`: what a server types to be protected."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from drengine.audit import recorded
from drengine.cli.ca_options import CaOption, open_ca, seconds_of, typed_address
from drengine.cli.common import JsonOption
from drengine.config import Address, parse
from drengine.durable import replace_durably
from drengine.enrolment.handout import remembered_agent
from drengine.enrolment.parties import living_parties
from drengine.enrolment.seen import remembered_address
from drengine.identity.authority import Authority
from drengine.identity.errors import CA_REFUSED, EnrolmentError
from drengine.identity.tokens import Invitation
from drengine.joining.inventory import BAD_INVENTORY, InventoryError, read_inventory
from drengine.joining.line import Line
from drengine.joining.server import Joining, RecoveryHost, Server, check_server_name
from drengine.model.errors import DrengineError
from drengine.ownership import make_directory
from drengine.terminal import emit_json, note
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)

TOKEN_PLACE = "TOKEN"
_TOKEN = re.compile(r"^DRENGINE_TOKEN=(\S+) ", re.MULTILINE)


@dataclass(frozen=True)
class Told:
    """The options that say what one server is told."""

    target: Annotated[
        str | None,
        typer.Option("--target", help="The target's HOST:PORT; of several targets of one store, with commas."),
    ] = None
    data_network: Annotated[
        list[str] | None,
        typer.Option("--data-network", help="Network (CIDR) that block data may use, beside loopback; once for each."),
    ] = None
    volume: Annotated[
        list[str] | None,
        typer.Option("--volume", help="NAME=PATH; else each disk that holds mounted file systems."),
    ] = None
    broker: Annotated[str | None, typer.Option("--broker", help="The MQTT broker's HOST:PORT.")] = None
    metrics: Annotated[str | None, typer.Option("--metrics", help="HOST:PORT where Prometheus may ask it.")] = None
    cuts: Annotated[str | None, typer.Option("--cuts", help="Which cuts: auto, or of quiet, frozen, application.")] = (
        None
    )
    bandwidth: Annotated[str | None, typer.Option("--bandwidth", help="A limit, such as 20MiB/s.")] = None
    tracker: Annotated[str | None, typer.Option("--tracker", help="auto (the default), ebpf, nbd or scan.")] = None
    spare: Annotated[
        bool,
        typer.Option("--spare", help="It stands ready to become the home of a source whose own is gone (--onto)."),
    ] = False
    recovery_host: Annotated[
        bool, typer.Option("--recovery-host", help="It is a recovery host, which needs --broker, and no source.")
    ] = False
    mount_root: Annotated[
        list[str] | None,
        typer.Option("--mount-root", help="On a recovery host: where disks may be mounted; once for each."),
    ] = None
    replace: Annotated[
        bool, typer.Option("--replace", help="It was set up anew: its certificates of before are revoked.")
    ] = False

    def party(self) -> Joining:
        """As an inventory would say it.

        Raises:
            DrengineError: BAD_CONFIG, BAD_INVENTORY.
        """
        values = {key: value for key, value in asdict(self).items() if value and key != "recovery_host"}
        if networks := values.pop("data_network", None):
            values["data_networks"] = networks
        if volumes := values.pop("volume", None):
            values["volumes"] = dict(each.partition("=")[::2] for each in volumes)
        if roots := values.pop("mount_root", None):
            values["mount_roots"] = roots
        party: Joining = parse(RecoveryHost, values) if self.recovery_host else parse(Server, values)
        for doubt in party.doubts():
            raise DrengineError(
                BAD_INVENTORY, doubt, hint="Give --data-network, --broker and --volume, or another --mount-root."
            )
        return party


@app.command()
@grouped
def join_command(
    ca: CaOption,
    name: Annotated[
        str | None, typer.Option("--name", help="The server, which is its source's name; or the recovery host.")
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="An inventory (YAML) of many servers, instead of --name.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder for one file a server, NAME.sh, instead of lines.")
    ] = None,
    ttl: Annotated[str, typer.Option("--ttl", help="How long a line's token counts.")] = "24h",
    authority: Annotated[
        str | None,
        typer.Option("--authority", help="HOST:PORT of `drengine ca serve`, as servers reach it; else where it runs."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make no token and no file; say for whom.")] = False,
    json: JsonOption = False,
    *,
    told: Told,
) -> None:
    """Print one line for a server: typed there as root, it fetches the agent, checks the host, enrols and protects it.

    The line waits for the first session and point, and says why when there is none. It may be typed again: it changes
    nothing then. For a server that has joined it has no token, which is then not needed. Recovery hosts join alike.
    """
    if (name is None) is (from_ is None):
        raise typer.BadParameter("give --name, or an inventory with --from")
    parties = _read(from_) if from_ else {str(name): told.party()}
    desk = _Desk(ca, authority, seconds_of(ttl), to, dry_run=dry_run)
    answers = []
    for each, party in parties.items():
        check_server_name(each)
        answers.append(desk.serve(each, party))
    _show(answers, to, dry_run=dry_run, json=json)


def _read(inventory: Path) -> dict[str, Joining]:
    try:
        found = read_inventory(inventory)
    except InventoryError as error:
        for each in error.findings:
            note(each.shown(str(inventory)))
        raise
    return {**found.servers, **found.recovery_hosts}


class _Desk:
    """Gives each server its line."""

    def __init__(self, ca: Path, authority: str | None, seconds: float, to: Path | None, *, dry_run: bool) -> None:
        self._authority: Authority = open_ca(ca)
        address = authority or remembered_address(ca)
        if not address:
            hint = "Start `drengine ca serve`, or give --authority."
            raise DrengineError(CA_REFUSED, "nobody knows where the authority is", hint=hint)
        self._address: Address = typed_address(address)
        agent = remembered_agent(ca)
        if agent is None:
            raise EnrolmentError("agent-missing")
        self._agent = agent
        self._seconds = seconds
        self._to = to
        self._dry_run = dry_run
        parties = living_parties(self._authority.index(), time.time())
        self._joined = {(each.role, each.name) for each in parties}

    def serve(self, name: str, party: Joining) -> dict[str, Any]:
        """What is told about one."""
        has_joined = (party.role, name) in self._joined and not party.replace
        file = self._to / f"{name}.sh" if self._to else None
        present = _present(file)
        token = "" if has_joined else self._valid_token(present)
        is_new = not has_joined and not token
        if is_new:
            token = TOKEN_PLACE if self._dry_run else self._new_token(name, party)
        line = str(self._line(name, party, token))
        changes = line + "\n" != present
        if file is not None and changes and not self._dry_run:
            make_directory(file.parent, mode=0o700)
            replace_durably(file, line.encode() + b"\n", mode=0o600)
        shown = {"name": name, "joined": has_joined, "token_made": is_new, "changed": changes if file else is_new}
        return {**shown, **({"file": file} if file else {"command": line})}

    def _line(self, name: str, party: Joining, token: str) -> Line:
        words = party.words(name, self._authority.site)
        pin = self._authority.issuing.fingerprint.hex()
        return Line(self._address, pin, self._agent.sha256, words, token)

    def _new_token(self, name: str, party: Joining) -> str:
        with recorded(self._authority.folder, "token.create", str(party.role), name=name, replace=party.replace):
            made, secret = self._authority.create_token(
                party.role, name, seconds=self._seconds, uses=1, replace=party.replace
            )
        return str(Invitation(self._address, self._authority.issuing.fingerprint, made.id, secret))

    def _valid_token(self, present: str) -> str:
        """The token in a file that was written before, while it counts: another one would be as good."""
        found = _TOKEN.search(present)
        if found is None:
            return ""
        try:
            invitation = Invitation.parse(found[1])
        except EnrolmentError:
            return ""
        known = {each.id: each for each in self._authority.index().tokens}.get(invitation.id)
        counts = known is not None and known.state(time.time()) == "valid"
        return found[1] if counts and invitation.authority == self._address else ""


def _present(file: Path | None) -> str:
    try:
        return file.read_text(encoding="utf-8") if file else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _show(answers: list[dict[str, Any]], to: Path | None, *, dry_run: bool, json: bool) -> None:
    if json:
        emit_json(answers)
        return
    for each in answers:
        if to is None:
            print(each["command"])
        state = (
            "has joined (--replace if it was set up anew)"
            if each["joined"]
            else "will join by a new token"
            if each["token_made"]
            else "is invited"
        )
        note(f"{each['name']}: {state}{_place(each, dry_run=dry_run)}")
    if not dry_run:
        how = f"run `sh {to}/NAME.sh`" if to else "type each line"
        note(f"On each server, as root: {how}. Whoever reads a token may join in that server's name.")


def _place(answer: Mapping[str, Any], *, dry_run: bool) -> str:
    if "file" not in answer:
        return ""
    return f", {answer['file']} {'as it is' if not answer['changed'] else 'would be written' if dry_run else 'written'}"
