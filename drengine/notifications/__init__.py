"""Telling people what happens: a run waits, is blocked, fails or ends; what is ready changes.

`Notifier.notify` is the port: it takes a `Notice` from any thread and returns at once.
"""

from drengine.notifications.notice import Notice, Topic
from drengine.notifications.notifier import SILENT, Notifier, open_notifier
from drengine.notifications.options import NotificationOptions

__all__ = ["SILENT", "Notice", "NotificationOptions", "Notifier", "Topic", "open_notifier"]
