"""Agents' metrics, shown by the target on their behalf, so that no port is opened on a source.

An agent tells its samples over the session that it has anyway. Which source they are of is what the session has proved;
no agent can say it, nor anything about another source or about the target. They end with the session.
"""

from __future__ import annotations

from collections.abc import Iterable

from drengine.target.sources import SourceState
from drengine.wire.events import MetricSample

PREFIX = "drengine_agent_"
"""Of the only names that an agent may use."""
RESERVED = frozenset({"source", "job", "instance"})
"""Labels that say where a sample comes from: an agent's own are left out."""
_HISTOGRAM_ENDS = ("_bucket", "_count", "_sum")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def exposition(states: Iterable[SourceState]) -> bytes:
    """What Prometheus scrapes: the samples of these sources, by family, each once."""
    families: dict[str, dict[str, float]] = {}
    for state in states:
        for sample in state.samples:
            if sample.name.startswith(PREFIX):
                family = families.setdefault(_family(sample.name), {})
                family.setdefault(f"{sample.name}{{{_labels(state.name, sample)}}}", sample.value)
    lines: list[str] = []
    for name, rows in sorted(families.items()):
        lines.append(f"# TYPE {name} {_kind(name, rows)}")
        lines += (f"{row} {value!r}" for row, value in rows.items())
    return "".join(f"{line}\n" for line in lines).encode()


def _family(name: str) -> str:
    """By our rule for names, not by the agent's word: two agents can't disagree about a family."""
    return next((name.removesuffix(end) for end in _HISTOGRAM_ENDS if name.endswith(end)), name)


def _kind(family: str, rows: Iterable[str]) -> str:
    if family.endswith("_total"):
        return "counter"
    return "gauge" if any(row.startswith(f"{family}{{") for row in rows) else "histogram"


def _labels(source: str, sample: MetricSample) -> str:
    own = (f'{name}="{value.translate(_ESCAPES)}"' for name, value in sample.labels if name not in RESERVED)
    return ",".join((f'source="{source}"', *own))
