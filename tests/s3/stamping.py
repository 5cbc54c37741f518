"""A writer of a store in an object store, for kills: ``python -m tests.s3.stamping STORE SEED ACK``.

As a target does, it opens the branch again after a failure, and goes on from the durable position.
"""

from __future__ import annotations

import sys
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine.store.blobs.s3.options import S3Options
from drengine.store.store import Store
from tests.crash.stamps import OPTIONS, replicate


def options(ack: str) -> S3Options:
    """Of the campaigns: little patience, no delay."""
    return S3Options(ack=ack, patience=1.0, request_seconds=5.0, upload_interval=0.05, delete_delay=0.0)


def main() -> None:
    """The child: it prints each position that was acknowledged to it."""
    path, seed, ack = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    store = Store.open(path, options=OPTIONS, storage_options=options(ack))
    while True:
        try:
            replicate(store, seed, lambda sequence: print(sequence, flush=True))
        except DrengineError as error:
            print(error, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
