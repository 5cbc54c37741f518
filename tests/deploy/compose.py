"""deploy/compose/compose.yaml as values, and its services as processes of this host, on a loopback of their own."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tests.s3.server import program
from tests.system.postgres import as_postgres, skip_unless_installed

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
SITE, CONFIG = Path("/var/lib/drengine"), Path("/etc/drengine")
"""Where the containers of drengine have their volume and their configuration."""


def services() -> dict[str, dict[str, Any]]:
    """All services, by name."""
    found: dict[str, dict[str, Any]] = document()["services"]
    return found


def document() -> dict[str, Any]:
    """The whole file."""
    found: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    return found


def words(service: dict[str, Any]) -> list[str]:
    """What a service's container executes, its image's own entry point left out."""
    own = ["drengine"] if "build" in service else []
    return [*service.get("entrypoint", own), *service.get("command", [])]


class Trial:
    """The services as processes: the same commands, arguments and files, on one loopback of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._namespace = f"drtrial-{secrets.token_hex(3)}"
        self._mounted = [place for place in (SITE, CONFIG) if not place.exists()]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for place in self._mounted:
            place.mkdir()
        self._programs = folder / "bin"
        self._programs.mkdir()
        for name, module in (("drengine", "drengine.cli.main"), ("drengine-agent", "drengine_agent.cli.main")):
            launcher = self._programs / name
            launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            launcher.chmod(0o755)
        subprocess.run(["ip", "netns", "add", self._namespace], check=True)
        subprocess.run(["ip", "-n", self._namespace, "link", "set", "lo", "up"], check=True)

    def close(self) -> None:
        """End everything, and leave no trace."""
        for process in reversed(self._processes.values()):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run(["ip", "netns", "delete", self._namespace], check=False)
        for place in self._mounted:
            place.rmdir()

    def start(self, name: str) -> None:
        """Start a service, or start it again."""
        service = services()[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                self._words(name, service),
                env=self._environment(service),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, name: str) -> int:
        """Run a service that ends; its exit code."""
        self.start(name)
        return self._processes.pop(name).wait(120)

    def kill(self, name: str) -> None:
        """As a power cut would."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def ask(self, *command: str) -> str:
        """What a command says that is typed in a container of drengine."""
        service = services()["target-a"]
        done = subprocess.run(
            self._inside([*command]), env=self._environment(service), capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    def get(self, url: str) -> str:
        """What a web server of the trial answers; nothing while it does not."""
        return self.ask("curl", "--silent", "--fail", "--max-time", "5", url)

    def said(self, name: str) -> str:
        """The end of a service's log."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-3000:]

    def _words(self, name: str, service: dict[str, Any]) -> list[str]:
        if "build" in service:
            return self._inside(words(service))
        programs = {"s3": [program()], "postgres": [], "mosquitto": [], "prometheus": ["prometheus"]}
        command = [*programs[name], *(self._here(service, word) for word in words(service))]
        if name == "postgres":
            command = self._postgres(service, command)
        return ["ip", "netns", "exec", self._namespace, *command]

    def _here(self, service: dict[str, Any], word: str) -> str:
        """A word in which the paths inside the container are those of this host."""
        for volume in sorted(service.get("volumes", ()), key=lambda each: -len(each.split(":")[1])):
            outside, inside = volume.split(":")[:2]
            option, equals, path = word.rpartition("=")
            if path.startswith(inside):
                here = FOLDER / outside if outside.startswith(".") else self.folder / outside
                if not outside.startswith("."):
                    here.mkdir(exist_ok=True)
                return f"{option}{equals}{here}{path.removeprefix(inside)}"
        return word

    def _inside(self, command: list[str]) -> list[str]:
        """A command that sees site and configuration where the containers do."""
        site = self.folder / "site"
        site.mkdir(exist_ok=True)
        binds = " && ".join(
            f"mount --bind {shlex.quote(str(outside))} {inside}"
            for outside, inside in ((site, SITE), (FOLDER / "config", CONFIG))
        )
        return ["ip", "netns", "exec", self._namespace, "sh", "-c", f"{binds} && exec {shlex.join(command)}"]

    def _environment(self, service: dict[str, Any]) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PG", "DRENGINE"))}
        path = f"{self._programs}:{Path(sys.executable).parent}:{plain['PATH']}"
        return {**plain, "PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'agents'}", **service.get("environment", {})}

    def _postgres(self, service: dict[str, Any], command: list[str]) -> list[str]:
        """As the image does it: a cluster whose one user has the password, and its database."""
        programs, settings = skip_unless_installed(), service["environment"]
        place = self.folder / "postgres"
        data, secret = place / "data", place / "password"
        if not data.exists():
            place.mkdir(exist_ok=True)
            secret.write_text(settings["POSTGRES_PASSWORD"])
            for each in (place, secret):
                shutil.chown(each, "postgres", "postgres")
            subprocess.run(
                [
                    *(str(programs / "initdb"), "--pgdata", str(data), "--auth=scram-sha-256", "--no-sync"),
                    *("--encoding=UTF8", f"--username={settings['POSTGRES_USER']}", f"--pwfile={secret}"),
                ],
                check=True,
                capture_output=True,
                **as_postgres(),
            )
            subprocess.run(
                [str(programs / "postgres"), "--single", "-D", str(data), "postgres"],
                input=f"CREATE DATABASE {settings['POSTGRES_DB']}\n",
                text=True,
                check=True,
                capture_output=True,
                **as_postgres(),
            )
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        return [*user, str(programs / command[0]), "-D", str(data), "-k", str(place), *command[1:]]
