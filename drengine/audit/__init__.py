"""An append-only log of who did what, chained by hashes, so that whoever changes it is found out."""

from drengine.audit.entry import Entry, Outcome
from drengine.audit.folding import Refusals
from drengine.audit.local import FOLDER, recorded
from drengine.audit.log import AuditLog, Keep

__all__ = ["FOLDER", "AuditLog", "Entry", "Keep", "Outcome", "Refusals", "recorded"]
