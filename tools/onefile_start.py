"""Starts the one-file agent. Any Python must be able to read this file, to be told what is missing: no new syntax."""

import os
import sys

KEY = "BUILD-ID"
ARCHIVE = os.path.realpath(sys.path[0])
CONTENTS = ".contents"
MARKER = ".drengine-agent-unpacked"
MARKED = b"drengine-agent made this folder and may remove it\n"
UNSUPPORTED = ("python-unsupported", 93)
DAMAGED = ("one-file-damaged", 14)
UNUSABLE = ("cache-unusable", 57)


def refuse(kind, message, hint):
    """End as every command of the agent does that can't do what it should."""
    if "--json" in sys.argv:
        import json

        said = {"error": kind[0], "message": message, "hint": hint, "exit_code": kind[1]}
        sys.stderr.write(json.dumps(said) + "\n")
    else:
        sys.stderr.write("error: %s [%s]\nhint:  %s\n" % (message, kind[0], hint))
    sys.exit(kind[1])


def check():
    """Refuse a Python that this file has nothing for; return the name of its kind, such as `cpython-311-x86_64-...`."""
    version = "%d.%d" % sys.version_info[:2]
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        hint = "Use CPython 3.11 to 3.14: python3.12 %s ..." % sys.argv[0]
        refuse(UNSUPPORTED, "Python %s can't run this agent" % version, hint)
    from importlib.machinery import EXTENSION_SUFFIXES

    for module in ("zlib", "_ctypes", "_ssl", "_socket", "mmap", "fcntl"):
        try:
            __import__(module)
        except ImportError:
            hint = "Install the whole Python, not a minimal one (Debian: python3, not python3-minimal)."
            refuse(UNSUPPORTED, "this Python %s lacks the module %s" % (version, module), hint)
    return EXTENSION_SUFFIXES[0][1:-3]


def private(folder):
    """Whether a folder is ours alone, now that it has been made if it could be."""
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        found = os.lstat(folder)
    except OSError:
        return False
    kind_and_writers = found.st_mode & 0o170022
    return kind_and_writers == 0o040000 and found.st_uid == os.geteuid() and os.access(folder, os.W_OK | os.X_OK)


def caches():
    """Folders that only this user can write, the best one first; none is made before it is needed."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folders = [os.environ.get("DRENGINE_CACHE"), os.environ.get("CACHE_DIRECTORY")]
    folders.append("/var/cache/drengine-agent" if os.geteuid() == 0 else os.path.join(home, "drengine-agent"))
    for folder in folders:
        if folder and private(folder):
            yield folder


def members(archive, kind):
    """What this Python needs: pairs of a path and its content."""
    import zipfile
    import zlib

    wanted = ("common/", "native/%s/" % kind, "stable/%s/" % kind.split("-", 2)[2])
    found = []
    try:
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                for start in wanted:
                    if name.startswith(start):
                        found.append((name[len(start) :], packed.read(name), start))
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        hint = "Copy it to this host again, and compare its sha256sum with that of where it comes from."
        refuse(DAMAGED, "%s is damaged: %s" % (archive, error), hint)
    if not any(start == wanted[1] for _, _, start in found):
        refuse(UNSUPPORTED, "this file has nothing for %s" % kind, "It runs on x86_64 and aarch64, with glibc or musl.")
    return [(path, data) for path, data, _ in found]


def unpack(archive, kind, place):
    """Write all beside its place, make it durable, and rename it there: whole, or not there.

    A place that is not whole is mended, file by file: others may be running from it.
    """
    import shutil
    import tempfile
    import zlib

    found = members(archive, kind)
    found.insert(0, (MARKER, MARKED))  # written first: what is cut short is known for ours
    lines = ["%08x %d %s" % (zlib.crc32(data), len(data), path) for path, data in found]
    found.append((CONTENTS, ("\n".join(lines) + "\nend\n").encode("utf-8")))
    fresh = tempfile.mkdtemp(prefix=".unpacking-", dir=os.path.dirname(place))
    try:
        for path, data in found:
            write(os.path.join(fresh, path), data)
        if os.path.isdir(place):
            for path, _ in found:
                os.makedirs(os.path.dirname(os.path.join(place, path)), 0o700, exist_ok=True)
                os.rename(os.path.join(fresh, path), os.path.join(place, path))
        else:
            os.rename(fresh, place)
    finally:
        shutil.rmtree(fresh, True)
    handle = os.open(os.path.dirname(place), os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def write(path, data):
    """Make a file, and make it durable."""
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def whole(place):
    """Whether everything lies there as it was unpacked, and neither a cleaner nor a failing disk has been there."""
    import zlib

    try:
        with open(os.path.join(place, CONTENTS), "rb") as file:
            lines = file.read().decode("utf-8").split("\n")
        for line in lines[:-2]:
            check, size, path = line.split(" ", 2)
            with open(os.path.join(place, path), "rb") as file:
                data = file.read()
            if len(data) != int(size) or zlib.crc32(data) != int(check, 16):
                return False
        return lines[-2:] == ["end", ""]
    except (OSError, ValueError):
        return False


def clean(folder, place):
    """Remove what other versions left, unless one of them runs. The folder may be in use for other things as well:
    only what bears our marker is ours."""
    import fcntl

    for name in os.listdir(folder):
        other = os.path.join(folder, name)
        if other == place or not ours(other):
            continue
        handle = -1
        try:
            handle = os.open(other, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = os.path.join(folder, ".gone-" + name.lstrip("."))
            os.rename(other, gone)  # so that nobody ever imports from a half
            remove(gone)
        except OSError:
            pass
        finally:
            if handle >= 0:
                os.close(handle)


def ours(folder):
    """Whether a folder was made by this program, whatever its name."""
    try:
        if os.path.islink(folder) or os.lstat(folder).st_uid != os.geteuid():
            return False
        with open(os.path.join(folder, MARKER), "rb") as file:
            return file.read(len(MARKED) + 1) == MARKED
    except OSError:
        return False


def remove(folder):
    """Remove a folder of ours, its marker last: the rest of one that was cut off is still known for ours."""
    import shutil

    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        elif name != MARKER:
            os.unlink(path)
    if os.listdir(folder) == [MARKER]:
        shutil.rmtree(folder, ignore_errors=True)


def hold(place):
    """Keep a place from being cleaned away while this process lives; False if it is not there."""
    import fcntl

    try:
        handle = os.open(place, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_SH)
        return os.fstat(handle).st_ino == os.stat(place).st_ino
    except OSError:
        return False


def settle(archive, kind, folder):
    """The place in a folder to import from, unpacked when it is not there whole."""
    import fcntl

    place = os.path.join(folder, KEY + "-" + kind)
    if not (hold(place) and whole(place)):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # two first starts at once: one unpacks, the other waits
            if not whole(place):
                unpack(archive, kind, place)
            clean(folder, place)
            hold(place)
        finally:
            os.close(handle)
    return place


def prepare(archive, kind):
    """The place to import from, in the first folder that has room for it, else in one for this run only."""
    problems = []
    for folder in caches():
        try:
            return settle(archive, kind, folder)
        except OSError as error:
            problems.append("%s: %s" % (folder, error.strerror or error))
    import atexit
    import shutil
    import tempfile

    try:
        folder = tempfile.mkdtemp(prefix="drengine-agent-")
        atexit.register(shutil.rmtree, folder, True)
        return settle(archive, kind, folder)
    except OSError as error:
        problems.append("a temporary folder: %s" % (error.strerror or error))
    hint = "Free some space there (60 MB are enough), or name another folder: DRENGINE_CACHE=FOLDER."
    refuse(UNUSABLE, "it can't be unpacked: " + "; ".join(problems), hint)


def main():
    """Start the agent."""
    sys.path[0] = prepare(ARCHIVE, check())
    from drengine_agent.cli.main import run

    run()


main()
