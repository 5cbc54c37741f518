"""The text of a new configuration file, from what a person said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drengine_agent.config import parse_config


def configuration_text(
    source: str,
    target: str,
    volumes: Mapping[str, Path],
    *,
    tracker: str,
    listen: str = "",
    state_directory: Path | None = None,
    tls: Mapping[str, Path] | None = None,
) -> str:
    """A configuration file, checked as the agent will check it.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    values: dict[str, Any] = {"source": source, "target": target, "tracker": tracker}
    if state_directory is not None:
        values["state_directory"] = str(state_directory.absolute())
    tables: list[tuple[str, dict[str, str]]] = []
    if listen:
        tables.append(("[nbd]", {"listen": listen}))
    if tls:
        tables.append(("[tls]", {key: str(path.absolute()) for key, path in tls.items()}))
    tables += [("[[volume]]", {"name": name, "path": str(path)}) for name, path in volumes.items()]
    lines = [f"{key} = {_quoted(text)}" for key, text in values.items()]
    for heading, content in tables:
        lines += ["", heading, *(f"{key} = {_quoted(text)}" for key, text in content.items())]
    parse_config(
        {
            **values,
            **{heading.strip("[]"): content for heading, content in tables if heading != "[[volume]]"},
            "volume": [content for heading, content in tables if heading == "[[volume]]"],
        }
    )
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
