"""What the programs need to know about this kernel's structures, out of the kernel's own description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from drengine_agent.capture.ebpf.btf import KernelTypes

REQUEST_EVENT, ISSUE_EVENT = "block_rq_complete", "block_rq_issue"
BIO_QUEUE_EVENT, BIO_COMPLETE_EVENT = "block_bio_queue", "block_bio_complete"
EVENTS: Final = (REQUEST_EVENT, ISSUE_EVENT, BIO_QUEUE_EVENT, BIO_COMPLETE_EVENT)


@dataclass(frozen=True, slots=True)
class Offsets:
    """What the programs need to know about this kernel's structures."""

    events: dict[str, int]
    operations: dict[str, int]
    request_queue: int
    request_disk: int | None
    request_sector: int
    request_bytes: int
    request_flags: int
    queue_disk: int
    disk_major: int
    disk_minor: int
    bio_sector: int
    bio_bytes: int
    bio_flags: int
    bio_device: int
    device_disk: int

    @staticmethod
    def of(types: KernelTypes) -> Offsets:
        """Read them from the kernel's types.

        Raises:
            UnknownTypeError: this kernel lacks one (older than 5.12, or much newer than this program).
        """
        own_disk = types.has("request", "rq_disk")  # before 5.17
        return Offsets(
            {name: types.typedef(f"btf_trace_{name}") for name in EVENTS},
            types.enumerators("REQ_OP_"),
            types.offset("request", "q"),
            types.offset("request", "rq_disk") if own_disk else None,
            types.offset("request", "__sector"),
            types.offset("request", "__data_len"),
            types.offset("request", "cmd_flags"),
            0 if own_disk else types.offset("request_queue", "disk"),
            types.offset("gendisk", "major"),
            types.offset("gendisk", "first_minor"),
            types.offset("bio", "bi_iter", "bi_sector"),
            types.offset("bio", "bi_iter", "bi_size"),
            types.offset("bio", "bi_opf"),
            types.offset("bio", "bi_bdev"),
            types.offset("block_device", "bd_disk"),
        )
