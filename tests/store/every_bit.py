"""`python -m tests.store.every_bit`: flip each single bit of a small store, one at a time, and read everything.

The suite samples bits; this takes them all, in a seeded random order, until they are through or the time is up.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import shutil
import sys
import time
from collections import Counter

from drengine.store.catalogue.sqlite import CATALOGUE_NAME
from drengine.store.store import Store
from tests.store import test_damage as damage
from tests.store.harness import encrypted, scratch

REFUSALS = {"same", "damaged", "catalogue-damaged", "store-version", "store-identity-damaged", "not-a-store"}
REFUSALS |= {"store-tampered", "key-missing"}


def main() -> int:
    """Exit status 1 when a flipped bit was served, or ended in anything but a typed refusal."""
    parser = argparse.ArgumentParser(prog="python -m tests.store.every_bit")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--segments", action="store_true", help="only those of segments")
    parser.add_argument("--encrypted", action="store_true", help="of an encrypted store")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    options = parser.parse_args()
    with encrypted() if options.encrypted else contextlib.nullcontext():
        return flip_all(options)


def flip_all(options: argparse.Namespace) -> int:
    """See main."""
    outcomes: Counter[tuple[str, str]] = Counter()
    with contextlib.contextmanager(damage.sample.__wrapped__)() as (original, source), scratch() as space:
        path = space / "store"
        shutil.copytree(original, path)
        with Store.open(path) as store:
            damage.EXPECTED["web1"] = [point.id for point in store.points("web1")]
        files = damage.files(path, ".seg")
        if not options.segments:
            files += [*path.glob("keys/*"), path / "STORE", path / CATALOGUE_NAME, *damage.files(path, ".map")]
        places = [(file, at, bit) for file in files for at in range(file.stat().st_size) for bit in range(8)]
        random.Random(options.seed).shuffle(places)
        print(f"seed {options.seed}: {len(places)} bits of {len(files)} files", flush=True)
        contents = {file: file.read_bytes() for file in files}
        begun = told = time.monotonic()
        for done, (file, at, bit) in enumerate(places):
            if time.monotonic() - begun > options.seconds:
                print(f"time is up after {done} of {len(places)} bits")
                break
            damage.flip(file, at, bit)
            outcome = damage.served(path, source)
            file.write_bytes(contents[file])
            for suffix in ("-wal", "-shm"):
                (path / f"{CATALOGUE_NAME}{suffix}").unlink(missing_ok=True)
            outcomes[file.suffix or file.name, outcome] += 1
            if outcome not in REFUSALS:
                print(f"FAILED (seed {options.seed}): bit {bit} at {at} of {file.name}: {outcome}")
                return 1
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"{told - begun:6.0f} s  {done + 1} bits", flush=True)
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:18} {outcome:24} {count}")
    print("no flipped bit was served")
    return 0


if __name__ == "__main__":
    sys.exit(main())
