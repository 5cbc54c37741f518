"""Where the key-encryption key comes from: options, and reading it.

A key is 32 bytes, or 64 hexadecimal digits with white space around. It is never taken from inside the store, nor from
a file that others may read: then whoever has the disk or an account has the key.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from drengine.config import DURATION, PATH, TEXT, WORDS, option
from drengine.config.options import BAD_CONFIG
from drengine.crypt.errors import KEY_UNUSABLE
from drengine.crypt.kek import KEY_BYTES, KeyEncryptionKey, KeyEncryptionKeys
from drengine.model.errors import DrengineError
from drengine.ownership import give_to_service, owner_of
from drengine.process.command import run_command

KEY_FILE_VARIABLE = "DRENGINE_KEY_FILE"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
KEY_FILE_BYTES_MAX = 4096
_TEXT = re.compile(rb"\s*([0-9a-fA-F]{64})\s*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", re.ASCII)


def _credential(name: str) -> None:
    if name and not _NAME.fullmatch(name):
        raise ValueError("a credential's name has letters, digits, '.', '_' and '-'")


@dataclass(frozen=True)
class EncryptionOptions:
    """[encryption]"""

    key_file: Path | None = option(
        PATH,
        default=None,
        help="File with the key-encryption key: 32 bytes, or 64 hexadecimal digits (`drengine keys generate` makes "
        "one). Only its owner may read it, and it does not lie in the store.",
    )
    credential: str = option(
        TEXT,
        default="",
        check=_credential,
        help="Name of a systemd credential with the key (`LoadCredentialEncrypted=` in the unit).",
    )
    key_command: tuple[str, ...] = option(
        WORDS,
        default=(),
        help="Program and arguments that print the key as 64 hexadecimal digits and nothing else, for a KMS. It gets "
        "little of our environment.",
    )
    key_command_seconds: float = option(DURATION, default=30.0, help="How long key_command may take.")
    previous_key_files: tuple[str, ...] = option(
        WORDS, default=(), help="Files with older keys, which still open what `drengine keys rewrap` has not reached."
    )

    @property
    def is_on(self) -> bool:
        """Whether any key is named."""
        return bool(self.key_file or self.credential or self.key_command)

    def check(self, where: str) -> None:
        """Return when at most one way to the key is named.

        Raises:
            DrengineError: BAD_CONFIG.
        """
        ways = [bool(self.key_file), bool(self.credential), bool(self.key_command)]
        if sum(ways) > 1 or (self.previous_key_files and not any(ways)):
            raise DrengineError(BAD_CONFIG, f"{where}: [encryption] needs one of key_file, credential and key_command")


def load_keks(options: EncryptionOptions, store: Path) -> KeyEncryptionKeys | None:
    """The key-encryption keys of a configuration; None where it names none. Blocks for as long as key_command takes.

    Raises:
        DrengineError: KEY_UNUSABLE, BAD_CONFIG.
    """
    options.check("configuration")
    if not options.is_on:
        return None
    older = [read_key_file(Path(path), store) for path in options.previous_key_files]
    if options.key_file:
        newest = read_key_file(options.key_file, store)
    elif options.credential:
        newest = _from_credential(options.credential, store)
    else:
        newest = _from_command(options.key_command, options.key_command_seconds)
    return KeyEncryptionKeys(newest, older)


def read_key_file(path: Path, store: Path) -> KeyEncryptionKey:
    """The key in a file.

    Raises:
        DrengineError: KEY_UNUSABLE: it is not there, not a key, inside the store, or others may read or change it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found, data = os.fstat(descriptor), os.read(descriptor, KEY_FILE_BYTES_MAX)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DrengineError(KEY_UNUSABLE, f"{path} can't be read: {error.strerror}") from error
    if found.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise DrengineError(KEY_UNUSABLE, f"{path} is open to others: mode {stat.S_IMODE(found.st_mode):04o}")
    if found.st_uid not in (0, os.geteuid(), owner_of(store)):
        raise DrengineError(KEY_UNUSABLE, f"{path} belongs to user {found.st_uid}")
    if path.resolve().is_relative_to(store.resolve()):
        raise DrengineError(KEY_UNUSABLE, f"{path} lies in the store that it is to protect")
    return parse_key(data, str(path))


def parse_key(data: bytes, where: str) -> KeyEncryptionKey:
    """A key as it is written; `where` it was found is for the message.

    Raises:
        DrengineError: KEY_UNUSABLE.
    """
    text = _TEXT.fullmatch(data)
    secret = bytes.fromhex(text[1].decode()) if text else data
    if len(secret) != KEY_BYTES:
        raise DrengineError(KEY_UNUSABLE, f"{where} has {len(data)} bytes: neither 32, nor 64 hexadecimal digits")
    if len(set(secret)) < KEY_BYTES // 4:
        raise DrengineError(KEY_UNUSABLE, f"{where} is no random key: it has {len(set(secret))} different bytes")
    return KeyEncryptionKey(secret)


def write_key_file(path: Path) -> KeyEncryptionKey:
    """Make a new key in a new file that only its owner may read; root's in a service's folder, the service, too.

    Raises:
        DrengineError: KEY_UNUSABLE: it is there already, or can't be made.
    """
    secret = secrets.token_bytes(KEY_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o400)
        try:
            os.write(descriptor, secret.hex().encode() + b"\n")
            give_to_service(descriptor, path.parent)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DrengineError(KEY_UNUSABLE, f"{path} can't be made: {error.strerror}") from error
    return KeyEncryptionKey(secret)


def _from_credential(name: str, store: Path) -> KeyEncryptionKey:
    directory = os.environ.get(CREDENTIALS_VARIABLE, "")
    if not directory:
        raise DrengineError(
            KEY_UNUSABLE, f"credential {name!r}: {CREDENTIALS_VARIABLE} is not set, so systemd did not start this"
        )
    return read_key_file(Path(directory) / name, store)


def _from_command(argv: tuple[str, ...], seconds: float) -> KeyEncryptionKey:
    done = run_command(argv, timeout_seconds=seconds)
    if not done.ok:
        how = "took too long" if done.timed_out else f"ended with {done.code}"
        raise DrengineError(KEY_UNUSABLE, f"key_command {argv[0]} {how}")  # not what it said: that may be the key
    return parse_key(done.output.encode(), f"what key_command {argv[0]} printed")
