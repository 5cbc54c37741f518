"""What the demonstration measured; the field names are the keys of ``--json``."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Everything that is printed at the end.

    Attributes:
        prefix_intact, older_prefix_intact: the point that was failed over to, and an older one, hold a prefix of the
            stamped writes over two disks.
        recovered_writes: how many of them; `acknowledged_writes` were confirmed before the disaster.
        confirmed_orders: confirmed by the shop before the disaster; `recovered_orders` came back.
        lost_writes_beyond_rpo: writes and orders that are missing although older than the promise of the report.
        rpo_seconds: as the report says; `lost_seconds`: of confirmed work, as the customers saw it.
        guarded: everything was on (`--guarded`); `in_clear`: files of the recovery side that hold the disk's content.
        rto_seconds: from the declaration to the last check; `outage_seconds`: from the disaster to then.
    """

    drill_ok: bool = False
    failover_ok: bool = False
    fenced: bool = False
    stale_source_refused: bool = False
    failback_ok: bool = False
    prefix_intact: bool = False
    older_prefix_intact: bool = False
    filesystem_clean: bool = False
    acknowledged_writes: int = 0
    recovered_writes: int = 0
    older_recovered_writes: int = 0
    confirmed_orders: int = 0
    recovered_orders: int = 0
    orders_home: int = 0
    lost_writes_beyond_rpo: int = 0
    points: int = 0
    rpo_seconds: float = 0.0
    lost_seconds: float = 0.0
    rto_seconds: float = 0.0
    outage_seconds: float = 0.0
    drill_rto_seconds: float = 0.0
    read_seconds: float = 0.0
    failback_bytes_shipped: int = 0
    initial_sync_seconds: float = 0.0
    bytes_read: int = 0
    bytes_on_wire: int = 0
    guarded: bool = False
    in_clear: list[str] = field(default_factory=list)
    seed: int = 0
    report: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return (
            self.drill_ok
            and self.failover_ok
            and self.fenced
            and self.stale_source_refused
            and self.failback_ok
            and self.prefix_intact
            and self.older_prefix_intact
            and self.filesystem_clean
            and self.lost_writes_beyond_rpo == 0
            and self.recovered_writes > self.older_recovered_writes > 0
            and self.orders_home >= self.recovered_orders > 0
            and not (self.guarded and self.in_clear)
            and not self.problems
        )
