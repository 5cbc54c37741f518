"""What drengine asks of AWS, read from the code that asks: deploy/terraform/policies/rights.json allows no more."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from drengine.control.topics import HEARD_BY_ORCHESTRATORS, Leaf
from drengine.enrolment.mosquitto import LEAVES

CLIENT = Path(__file__).parents[1] / "drengine" / "store" / "blobs" / "s3" / "boto.py"
ACTIONS = {
    "put_object": "PutObject",
    "create_multipart_upload": "PutObject",
    "upload_part": "PutObject",
    "complete_multipart_upload": "PutObject",
    "abort_multipart_upload": "AbortMultipartUpload",
    "get_object": "GetObject",
    "head_object": "GetObject",
    "delete_objects": "DeleteObject",
    "list_objects_v2": "ListBucket",
}
"""The action that AWS asks for before it carries out a call of the SDK."""
ON_BUCKETS = frozenset({"ListBucket"})
_NO_CALLS = frozenset({"meta", "close"})
_DONE_WITHOUT = frozenset({"get_object_lock_configuration"})
"""Asked by the trial alone, which takes a refusal for an answer."""
_CLIENT = "_s3"


def calls(source: str) -> set[str]:
    """The calls of the SDK's client in a module.

    Raises:
        KeyError: one of which it is not known what it needs.
    """
    found = (
        {
            node.attr
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == _CLIENT
        }
        - _NO_CALLS
        - _DONE_WITHOUT
    )
    for name in found:
        ACTIONS[name]
    return found


def rights() -> str:
    """deploy/terraform/policies/rights.json"""
    actions = {ACTIONS[name] for name in calls(CLIENT.read_text(encoding="utf-8"))}
    found = {
        "object_actions": sorted(actions - ON_BUCKETS),
        "bucket_actions": sorted(actions & ON_BUCKETS),
        "party_says": list(LEAVES["write"]),
        "party_retains": [Leaf.PRESENCE, Leaf.REPORT],
        "party_hears": list(LEAVES["read"]),
        "orchestrator_hears": list(HEARD_BY_ORCHESTRATORS),
    }
    return json.dumps(found, indent=2) + "\n"
