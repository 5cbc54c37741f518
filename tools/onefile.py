"""The agent as one file: `make agent` writes dist/drengine-agent, which needs nothing but CPython 3.11 to 3.14.

The file is a short shell script that finds a Python, followed by a zip archive:

    __main__.py                       tools/onefile_start.py: checks the Python, unpacks once, starts
    common/                           the agent and its pure packages
    native/cpython-311-x86_64-.../    C extensions for one Python on one machine and C library
    stable/x86_64-linux-.../          those for every Python of a machine and C library

Wheels come from requirements/agent.lock, each checked by its hash. The same sources and lock give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drengine import __version__

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements/agent.lock"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux_2_17_aarch64", "musllinux_1_2_x86_64", "musllinux_1_2_aarch64")
NATIVE = ("cffi", "msgspec", "xxhash", "zstandard")
STABLE = ("cryptography",)
"""Their extensions keep to the part of Python's interface that stays the same."""
NOT_NEEDED = ("colorama", "win-inet-pton")
"""Locked for other systems."""
_PARTS = ("cli", "console", "crypt", "failover", "fleet", "iscsi", "joining", "monitoring", "notifications", "people")
TARGET_ONLY = [("drengine", part) for part in (*_PARTS, "conversion", "policy", "store", "target")]
"""Parts of drengine that the agent never imports (import-linter holds it to that)."""
NOT_FOR_AGENTS = (
    Path("drengine/control/broker.py"),
    *(Path("drengine/enrolment") / f"{name}.py" for name in ("http", "mosquitto", "rollover", "service", "serving")),
    Path("drengine/identity/authority.py"),
    Path("drengine/migrations.py"),
)
"""The embedded broker, the authority, and what migrates databases: other hosts run them."""
DROPPED = re.compile(
    r"\.pyi$|/py\.typed$|^zstandard/_cffi\.|^zstandard/backend_(cffi|rust)|\.dist-info/(?!METADATA|licenses)"
    r"|^pygments/(lexers|styles)/(?!__init__|_mapping|default)"
)
"""Types; a second binding of zstandard; 300 languages and styles that help texts are never written in."""
TIME = (1980, 1, 1, 0, 0, 0)
SIZE_CHARACTERS = 16
SHELL = """#!/bin/sh
# drengine-agent {version}: one file for any Linux with Python 3.11 to 3.14. Below this script lies a zip archive.
size={size}
refuse() {{
  case " $* " in
    *" --json "*)
      printf '{{"error": "%s", "message": "%s", "hint": "%s", "exit_code": %s}}\\n' "$1" "$3" "$4" "$2" >&2 ;;
    *)
      printf 'error: %s [%s]\\nhint:  %s\\n' "$3" "$1" "$4" >&2 ;;
  esac
  exit "$2"
}}
found=$(wc -c <"$0" 2>/dev/null) && [ "$found" -ne "$size" ] &&
  refuse one-file-damaged 14 "this file has $((found)) bytes and not $size: it is not whole" \\
    "Copy it to this host again, and compare its sha256sum with that of where it comes from." "$@"
for python in ${{DRENGINE_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}}; do
  command -v "$python" >/dev/null 2>&1 &&
    "$python" -IS -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null &&
    exec "$python" -IS "$0" "$@"
done
refuse python-unsupported 93 "no Python 3.11 to 3.14 is found on this host" \\
  "Install one beside the system's own (its packages are not needed), or name it: DRENGINE_PYTHON=PATH." "$@"
exit
"""


def requirements(lock: Path = LOCK) -> dict[str, str]:
    """Lines of a lock file by package, each with its hashes."""
    lines = lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return {line.partition("==")[0]: line for line in lines if line and line.partition("==")[0] not in NOT_NEEDED}


def fetch(lines: list[str], folder: Path, python: str, platform: str) -> list[Path]:
    """Wheels for a Python on a platform, by pip, which checks their hashes.

    Raises:
        CalledProcessError: one is not to be had, or is another than the locked one.
    """
    folder.mkdir()
    wanted = folder / "wanted.txt"
    wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary=:all:", "--require-hashes", "--implementation=cp", f"--python-version={python}"]
    subprocess.run([*pip, f"--platform={platform}", "-d", str(folder), "-r", str(wanted)], check=True, stdout=2)
    return sorted(folder.glob("*.whl"))


def members(folder: Path) -> dict[str, bytes]:
    """Everything that goes into the archive, by name."""
    locked = requirements()
    pure = [line for name, line in locked.items() if name not in NATIVE + STABLE]
    native, stable = [locked[name] for name in NATIVE], [locked[name] for name in STABLE]
    work = [(pure, folder / "pure", PYTHONS[0], PLATFORMS[0])]
    work += [(stable, folder / f"stable-{platform}", PYTHONS[0], platform) for platform in PLATFORMS]
    work += [
        (native, folder / f"{python}-{platform}", python, platform)
        for python, platform in itertools.product(PYTHONS, PLATFORMS)
    ]
    found = dict(own_sources())
    with ThreadPoolExecutor(4) as pool:
        for wheels in pool.map(lambda each: fetch(*each), work):
            for wheel in wheels:
                for name, data in contents(wheel):
                    if found.setdefault(name, data) != data:
                        raise ValueError(f"{wheel.name}: {name} differs between wheels")
    return found


def own_sources() -> Iterator[tuple[str, bytes]]:
    """The agent, and the parts of drengine that it uses."""
    for base, package in ((ROOT, "drengine"), (ROOT / "agents", "drengine_agent")):
        for path in sorted((base / package).rglob("*")):
            place = path.relative_to(base)
            if (
                "__pycache__" in place.parts
                or not path.is_file()
                or place.parts[:2] in TARGET_ONLY
                or place in NOT_FOR_AGENTS
            ):
                continue
            yield f"common/{place}", path.read_bytes()


def contents(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """What a wheel adds: extensions without their debugging sections, the rest as it is."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith("/") or DROPPED.search(name):
                continue
            data = archive.read(name)
            suffix = re.search(r"\.(cpython-[\w-]+)\.so$", name)
            if name.endswith(".abi3.so"):
                yield f"stable/{_machine(wheel)}/{name}", without_sections(data)
            elif suffix:
                yield f"native/{suffix[1]}/{name}", without_sections(data)
            elif ".dist-info/" in name and wheel.name.startswith(NATIVE + STABLE) and name.endswith("METADATA"):
                continue  # names its platform; the licences stay
            else:
                yield f"common/{name}", data


def _machine(wheel: Path) -> str:
    """Machine and C library of a wheel, as the end of its Python's names for extensions: `x86_64-linux-gnu`."""
    library = "musl" if "musllinux" in wheel.name else "gnu"
    return f"{'aarch64' if 'aarch64' in wheel.name else 'x86_64'}-linux-{library}"


def without_sections(elf: bytes) -> bytes:
    """A 64-bit little-endian ELF file cut off behind what is loaded: loaders use segments, never sections."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    offset, count = struct.unpack_from("<Q", elf, 32)[0], struct.unpack_from("<H", elf, 56)[0]
    ends = [sum(struct.unpack_from("<8xQ16xQ", elf, offset + 56 * number)) for number in range(count)]
    kept = bytearray(elf[: max(*ends, offset + 56 * count)])
    struct.pack_into("<Q", kept, 40, 0)  # offset of the section headers
    struct.pack_into("<HH", kept, 60, 0, 0)  # their number, and which of them holds names
    return bytes(kept)


def pack(found: dict[str, bytes], *, level: int = 9) -> bytes:
    """The file: the same members, at the same level of compression, give the same bytes."""
    names = sorted(found)
    build = hashlib.sha256()
    for name in names:
        build.update(f"{name}\0{len(found[name])}\0".encode() + found[name])
    start = (Path(__file__).parent / "onefile_start.py").read_text(encoding="utf-8")
    build.update(start.encode())
    out = io.BytesIO()
    out.write(SHELL.format(version=__version__, size=" " * SIZE_CHARACTERS).encode())
    with zipfile.ZipFile(out, "a") as archive:
        # Stored plainly: a Python without zlib must be able to read it, to say so.
        _add(archive, "__main__.py", start.replace("BUILD-ID", build.hexdigest()[:24]).encode(), None)
        for name in names:
            _add(archive, name, found[name], level)
    size = str(len(out.getvalue())).ljust(SIZE_CHARACTERS)
    return out.getvalue().replace(b"size=" + b" " * SIZE_CHARACTERS, f"size={size}".encode(), 1)


def _add(archive: zipfile.ZipFile, name: str, data: bytes, level: int | None) -> None:
    member = zipfile.ZipInfo(name, TIME)
    member.compress_type = zipfile.ZIP_STORED if level is None else zipfile.ZIP_DEFLATED
    member.create_system = 3
    member.external_attr = 0o100644 << 16
    archive.writestr(member, data, compresslevel=level)


def build(output: Path) -> bytes:
    """Write the file; what was there is replaced at once. Returns its content."""
    with tempfile.TemporaryDirectory() as folder:
        data = pack(members(Path(folder)))
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = output.with_name(f".{output.name}.new")
    fresh.write_bytes(data)
    fresh.chmod(0o755)
    fresh.replace(output)
    return data


def main() -> None:
    """Build it."""
    parser = argparse.ArgumentParser(prog="python -m tools.onefile")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist/drengine-agent")
    output: Path = parser.parse_args().output
    data = build(output)
    print(f"{output}: {len(data) / 1e6:.1f} MB, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
