"""Locks between the processes and hosts that use a store."""

from drengine.store.locks.interface import NOBODY, Holder, Lock, Locks, Position

__all__ = ["NOBODY", "Holder", "Lock", "Locks", "Position"]
