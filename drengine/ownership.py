"""Whose files are: what root makes in a service's directory belongs to the service.

A daemon runs as a user of its own, and root runs commands on the same store and state. A file of root's that the
daemon may not open stops it. So whatever is made gets the owner of the directory in which it is made.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

SERVICE_USER = "drengine"
"""As whom the packages' units run target, orchestrator and authority."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def give_to_owner(descriptor: int, folder: int) -> None:
    """Give what was just made to the owner of its folder, where root made it; both are open.

    Raises:
        OSError: it cannot be given.
    """
    if os.geteuid():
        return
    owner, made = os.fstat(folder), os.fstat(descriptor)
    if (owner.st_uid, owner.st_gid) != (made.st_uid, made.st_gid):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def give_path_to_owner(path: Path) -> None:
    """Give a file or directory that was just made to the owner of its folder, where root made it.

    Raises:
        OSError: it cannot be given.
    """
    if not os.geteuid():
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def make_directory(path: Path, *, mode: int = 0o700) -> None:
    """Make a directory and those above it that are missing; one that is there is left as it is.

    Raises:
        OSError: it cannot be made.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        try:
            each.mkdir(mode=mode)
        except FileExistsError:
            continue  # somebody else was faster
        give_path_to_owner(each)
    if not path.is_dir():
        path.mkdir()  # which says what is wrong


def open_owned(path: Path, flags: int, mode: int) -> int:
    """A file's descriptor; the file, if this makes it, belongs to its folder's owner.

    Raises:
        OSError: it cannot be opened.
    """
    if os.geteuid() or not flags & os.O_CREAT:
        return os.open(path, flags, mode)
    folder = os.open(path.parent, _FOLDER)
    try:
        try:
            descriptor = os.open(path.name, flags | os.O_EXCL, mode, dir_fd=folder)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return os.open(path.name, flags & ~os.O_CREAT, dir_fd=folder)
        try:
            give_to_owner(descriptor, folder)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
    finally:
        os.close(folder)


def barrier(path: Path) -> str:
    """What keeps this user from a path, in words: the first directory on the way that it can't enter, or the end."""
    path = path.absolute()
    closed = next((each for each in reversed(path.parents) if not os.access(each, os.X_OK, effective_ids=True)), None)
    place = closed or (path if path.exists() else path.parent)
    shown = f"{path}: {place}" if place != path else str(path)
    return f"{shown} belongs to {_name(place.stat().st_uid)}, and {_name(os.geteuid())} may not use it"


def warning_of(path: Path) -> str:
    """What root hears when it has just made something for the service where the service's user can't use it."""
    if os.geteuid() or path.stat().st_uid:
        return ""
    try:
        pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return ""
    return f"warning: {path} belongs to root; the services run as {SERVICE_USER}: chown -R {SERVICE_USER}: {path}"


def give_tree(folder: Path, user: str) -> None:
    """Give a folder and what lies in it to a user, where root does it and there is such a user.

    Files of several names stay whose they are: one of the names may lie elsewhere.

    Raises:
        OSError: it cannot be given.
    """
    if os.geteuid():
        return
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        return
    for each in (folder, *folder.rglob("*")):
        status = each.lstat()
        if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
            os.chown(each, found.pw_uid, found.pw_gid, follow_symlinks=False)


def kept_from(path: Path, user: str) -> str:
    """Why a user can't read a file, by permissions and owners; empty: it can. Links are followed."""
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        return f"this machine has no user {user}"
    groups = os.getgrouplist(user, found.pw_gid)
    path = path.resolve()
    for place, wanted in (*((each, stat.S_IXOTH) for each in reversed(path.parents)), (path, stat.S_IROTH)):
        status = place.stat()
        shift = 6 if status.st_uid == found.pw_uid else 3 if status.st_gid in groups else 0
        if found.pw_uid and not status.st_mode & (wanted << shift):
            return f"{place} belongs to {_name(status.st_uid)} and is closed to {user}"
    return ""


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
