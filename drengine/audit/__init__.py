"""An append-only log of who did what, chained by hashes, so that whoever changes it is found out."""

from drengine.audit.entry import Entry, Outcome
from drengine.audit.folding import Refusals
from drengine.audit.log import AuditLog, Keep

FOLDER = "audit"
"""The log's directory in that of a store, of an orchestrator's state, and of a CA."""

__all__ = ["FOLDER", "AuditLog", "Entry", "Keep", "Outcome", "Refusals"]
