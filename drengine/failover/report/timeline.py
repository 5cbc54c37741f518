"""A run's time line as inline SVG: a bar for each try of each step, the moments that count as lines across."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from drengine.failover.report.values import Report, StepReport
from drengine.terminal import human_duration

ROW, TOP, LEFT, RIGHT, WIDTH = 20, 34, 250, 70, 1040
LABEL_CHARACTERS_MAX = 40
STEPS_MAX = 400
TICKS_MAX = 8
_NICE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
_STYLE = {"done": "ok", "skipped": "ok", "failed": "bad", "retry": "bad", "waiting": "wait"}


def timeline(report: Report) -> str:
    """The SVG, or nothing when no step has begun."""
    steps = [step for step in report.steps if step.attempts][:STEPS_MAX]
    if not steps:
        return ""
    begin_ns = min(step.attempts[0].began_ns for step in steps)
    end_ns = max(max(each.ended_ns or each.began_ns for each in step.attempts) for step in steps)
    objective_ns = _objective_ns(report)
    shown_end = max(end_ns, objective_ns if objective_ns and objective_ns - begin_ns < 3 * (end_ns - begin_ns) else 0)
    scale = _Scale(begin_ns, max(shown_end - begin_ns, 1_000_000))
    height = TOP + ROW * len(steps) + 26
    parts = [
        f'<svg class="timeline" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Steps over time">',
        *scale.ticks(height),
    ]
    for number, step in enumerate(steps):
        parts += _row(step, TOP + ROW * number, scale, end_ns, number)
    if report.recovered_ns:
        parts.append(_moment(scale, report.recovered_ns, height, "recovered", "recovered"))
    if objective_ns and objective_ns <= shown_end:
        parts.append(_moment(scale, objective_ns, height, "objective", "RTO promised"))
    return "".join([*parts, "</svg>"])


class _Scale:
    def __init__(self, begin_ns: int, length_ns: int) -> None:
        self.begin_ns = begin_ns
        self.length_ns = length_ns

    def x(self, at_ns: int) -> float:
        share = min(1.0, max(0.0, (at_ns - self.begin_ns) / self.length_ns))
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)

    def ticks(self, height: int) -> list[str]:
        seconds = self.length_ns / 1e9
        step = next((each for each in _NICE if seconds / each <= TICKS_MAX), seconds / TICKS_MAX)
        parts = []
        for number in range(int(seconds / step) + 1):
            x = self.x(self.begin_ns + int(number * step * 1e9))
            parts.append(f'<line class="tick" x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{height - 22}"/>')
            parts.append(f'<text class="scale" x="{x}" y="{height - 8}">{_tick(number * step)}</text>')
        return parts


def _tick(seconds: float) -> str:
    if seconds >= 60:
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"
    return f"{seconds:.10g} s" if seconds else "0"


def _row(step: StepReport, y: int, scale: _Scale, end_ns: int, number: int) -> Sequence[str]:
    label = step.id if len(step.id) <= LABEL_CHARACTERS_MAX else f"{step.id[: LABEL_CHARACTERS_MAX - 1]}…"
    parts = [f'<rect class="stripe" x="0" y="{y}" width="{WIDTH}" height="{ROW}"/>'] if number % 2 else []
    parts.append(f'<text class="step" x="{LEFT - 8}" y="{y + 14}">{escape(label)}</text>')
    last = step.attempts[-1]
    for attempt in step.attempts:
        ended = attempt.ended_ns or (end_ns if attempt is last else attempt.began_ns)
        x = scale.x(attempt.began_ns)
        width = max(2.0, round(scale.x(ended) - x, 2))
        look = _STYLE.get(step.status, "open") if attempt is last else ("ok" if attempt.ok else "bad")
        took = short_duration((ended - attempt.began_ns) / 1e9)
        label = escape(f"{step.title}, try {attempt.number}: {took}")
        parts.append(
            f'<rect class="{look}" x="{x}" y="{y + 4}" width="{width}" height="{ROW - 8}" rx="2">'
            f"<title>{label}</title></rect>"
        )
    if step.seconds is not None:
        x = min(scale.x(last.ended_ns or end_ns) + 5, WIDTH - RIGHT + 5)
        parts.append(f'<text class="took" x="{x}" y="{y + 14}">{short_duration(step.seconds)}</text>')
    return parts


def short_duration(seconds: float) -> str:
    """As `human_duration`, but what takes less than a second in milliseconds."""
    return f"{seconds * 1000:.0f} ms" if 0 < seconds < 1 else human_duration(seconds)


def _moment(scale: _Scale, at_ns: int, height: int, look: str, label: str) -> str:
    x = scale.x(at_ns)
    y = TOP - 22 if look == "objective" else TOP - 10
    side = f'x="{x - 4}" text-anchor="end"' if x > WIDTH - 2 * RIGHT else f'x="{x + 4}"'
    return (
        f'<line class="{look}" x1="{x}" x2="{x}" y1="{TOP - 18}" y2="{height - 22}"/>'
        f'<text class="{look}" {side} y="{y}">{label}</text>'
    )


def _objective_ns(report: Report) -> int:
    promised = next((each.promised_seconds for each in report.objectives if each.name == "RTO"), 0.0)
    return report.declared_ns + int(promised * 1e9) if promised and report.declared_ns else 0
