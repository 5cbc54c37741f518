"""The targets that share a store: who they are, how they stand, and which of them each source was placed at."""

from drengine.store.targets.interface import (
    LIVING_SECONDS,
    SILENT_SECONDS,
    Introduction,
    TargetInfo,
    Targets,
    TargetState,
)

__all__ = ["LIVING_SECONDS", "SILENT_SECONDS", "Introduction", "TargetInfo", "TargetState", "Targets"]
