"""Starts the one-file agent. Any Python must be able to read this file, to be told what is missing: no new syntax."""

import os
import sys

KEY = "BUILD-ID"
ARCHIVE = os.path.realpath(sys.path[0])


def refuse(message, hint):
    """End as every command of the agent does that can't do what it should."""
    if "--json" in sys.argv:
        import json

        said = {"error": "python-unsupported", "message": message, "hint": hint, "exit_code": 93}
        sys.stderr.write(json.dumps(said) + "\n")
    else:
        sys.stderr.write("error: %s [python-unsupported]\nhint:  %s\n" % (message, hint))
    sys.exit(93)


def check():
    """Refuse a Python that this file has nothing for; return the name of its kind, such as `cpython-311-x86_64-...`."""
    version = "%d.%d" % sys.version_info[:2]
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        refuse("Python %s can't run this agent" % version, "Use CPython 3.11 to 3.14: python3.12 %s ..." % sys.argv[0])
    from importlib.machinery import EXTENSION_SUFFIXES

    for module in ("zlib", "_ctypes", "_ssl", "_socket", "mmap", "fcntl"):
        try:
            __import__(module)
        except ImportError:
            hint = "Install the whole Python, not a minimal one (Debian: python3, not python3-minimal)."
            refuse("this Python %s lacks the module %s" % (version, module), hint)
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


def cache():
    """A folder that only this user can write, and whether it stays."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    named = [os.environ.get("DRENGINE_CACHE"), os.environ.get("CACHE_DIRECTORY")]
    usual = "/var/cache/drengine-agent" if os.geteuid() == 0 else os.path.join(home, "drengine-agent")
    for folder in [*named, usual]:
        if folder and private(folder):
            return folder, True
    import tempfile

    return tempfile.mkdtemp(prefix="drengine-agent-"), False


def unpack(archive, kind, place):
    """Write what this Python needs beside its place, make it durable, and rename it there: whole, or not there."""
    import tempfile
    import zipfile

    wanted = ("common/", "native/%s/" % kind)
    with zipfile.ZipFile(archive) as packed:
        names = [name for name in packed.namelist() if name.startswith(wanted)]
        if not any(name.startswith(wanted[1]) for name in names):
            refuse("this file has nothing for %s" % kind, "It runs on x86_64 and aarch64, with glibc or musl.")
        fresh = tempfile.mkdtemp(prefix=".unpacking-", dir=os.path.dirname(place))
        for name in names:
            start = next(each for each in wanted if name.startswith(each))
            path = os.path.join(fresh, name[len(start) :])
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            with open(path, "wb") as file:
                file.write(packed.read(name))
                file.flush()
                os.fsync(file.fileno())
    os.rename(fresh, place)
    handle = os.open(os.path.dirname(place), os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def clean(folder, place):
    """Remove what other versions left, unless one of them runs."""
    import fcntl
    import shutil

    for name in os.listdir(folder):
        other = os.path.join(folder, name)
        if other == place or not os.path.isdir(other):
            continue
        handle = os.open(other, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = os.path.join(folder, ".gone-" + name.lstrip("."))
            os.rename(other, gone)  # so that nobody ever imports from a half
            shutil.rmtree(gone, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(handle)


def hold(place):
    """Keep a place from being cleaned away while this process lives; False if it is not there."""
    import fcntl

    try:
        handle = os.open(place, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_SH)
        return os.fstat(handle).st_ino == os.stat(place).st_ino
    except OSError:
        return False


def prepare(archive, kind):
    """The folder to import from, unpacked when it is not there yet."""
    import fcntl

    folder, stays = cache()
    place = os.path.join(folder, KEY + "-" + kind)
    if not hold(place):
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)  # two first starts at once: one unpacks, the other waits
        if not os.path.isdir(place):
            unpack(archive, kind, place)
        clean(folder, place)
        hold(place)
        os.close(handle)
    if not stays:
        import atexit
        import shutil

        atexit.register(shutil.rmtree, folder, True)
    return place


def main():
    """Start the agent."""
    sys.path[0] = prepare(ARCHIVE, check())
    from drengine_agent.cli.main import run

    run()


main()
