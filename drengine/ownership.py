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


def give_to_service(descriptor: int, folder: Path) -> None:
    """Let whose folder it is read a file that root has just made there: its owner, or a group that may enter it.

    /etc/drengine is such a folder: root's, and of the group as which the services run.

    Raises:
        OSError: it cannot be given.
    """
    if os.geteuid():
        return
    found = folder.stat()
    if found.st_uid:
        os.fchown(descriptor, found.st_uid, found.st_gid)
    elif found.st_gid and found.st_mode & stat.S_IXGRP:
        os.fchown(descriptor, 0, found.st_gid)
        os.fchmod(descriptor, os.fstat(descriptor).st_mode & 0o700 | stat.S_IRGRP)


def owner_of(path: Path) -> int:
    """Whose a file or directory is, or will be when root makes it."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place.stat().st_uid


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


def service_warnings(*paths: Path | None) -> list[str]:
    """What root hears of files and folders for the services that their user can't read, where there is that user."""
    if os.geteuid() or not _is_known(SERVICE_USER):
        return []
    found = dict.fromkeys(kept_from(path, SERVICE_USER) for path in paths if path is not None and path.exists())
    return [f"warning: the services run as {SERVICE_USER}, but {why}" for why in found if why]


def give_tree(folder: Path, user: str) -> None:
    """Give a folder and what lies in it to a user, where root does it and there is such a user.

    Files of several names stay whose they are: one of the names may lie elsewhere.

    Raises:
        OSError: it cannot be given.
    """
    if os.geteuid() or not _is_known(user):
        return
    found = pwd.getpwnam(user)
    for each in (folder, *folder.rglob("*")):
        status = each.lstat()
        if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
            os.chown(each, found.pw_uid, found.pw_gid, follow_symlinks=False)


def kept_from(path: Path, user: str) -> str:
    """Why a user can't read a file, by permissions and owners; empty: it can. Links are followed."""
    if not _is_known(user):
        return f"this machine has no user {user}"
    found = pwd.getpwnam(user)
    groups = os.getgrouplist(user, found.pw_gid)
    path = path.resolve()
    for place, wanted in (*((each, stat.S_IXOTH) for each in reversed(path.parents)), (path, stat.S_IROTH)):
        status = place.stat()
        shift = 6 if status.st_uid == found.pw_uid else 3 if status.st_gid in groups else 0
        if found.pw_uid and not status.st_mode & (wanted << shift):
            return f"{place} belongs to {_name(status.st_uid)} and is closed to {user}"
    return ""


def _is_known(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
