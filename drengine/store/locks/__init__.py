"""Locks between the processes and hosts that use a store."""

from drengine.store.locks.interface import Holder, Lock, Locks, Position

__all__ = ["Holder", "Lock", "Locks", "Position"]
