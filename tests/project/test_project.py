"""The project holds to its own rules: documents are current, names exist, metrics and rules are clean."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from drengine.console.metrics import FAMILIES as ORCHESTRATOR_FAMILIES
from drengine.enrolment.metrics import FAMILIES as AUTHORITY_FAMILIES
from drengine.model.errors import error_kind, error_kinds
from drengine.target.metrics import FAMILIES as TARGET_FAMILIES
from drengine.telemetry import Family, Metrics
from drengine_agent.daemon.metrics import FAMILIES as AGENT_FAMILIES
from tools import documents

ROOT = Path(__file__).parent.parent.parent
ALL_FAMILIES = {
    "target": TARGET_FAMILIES,
    "agent": AGENT_FAMILIES,
    "orchestrator": ORCHESTRATOR_FAMILIES,
    "authority": AUTHORITY_FAMILIES,
}
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing: apt prometheus")


@pytest.mark.parametrize("name", documents.DOCUMENTS)
def test_a_generated_document_is_current(name: str) -> None:
    assert (ROOT / name).read_text() == documents.DOCUMENTS[name](), "run make docs"


def test_every_fault_that_is_promised_has_a_test() -> None:
    assert documents.missing_faults() == []


def test_every_link_in_the_documents_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_architecture_names_files_that_exist() -> None:
    """Folders and modules, from the root or from a package; a file of Python by its name alone as well."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    tops = [ROOT, ROOT / "drengine", ROOT / "agents", ROOT / "agents/drengine_agent"]
    named = set(re.findall(r"(?<![\w/.])(?:[a-z_]+/)+(?:[a-z_]+\.py\b)?", text)) | set(
        re.findall(r"\b[a-z_]+\.py\b", text)
    )
    for name in sorted(named):
        found = any((top / name).exists() for top in tops)
        found = found or any(next(top.rglob(name), None) for top in tops[1:] if "/" not in name)
        found = found or any(next(top.rglob(name.rstrip("/")), None) for top in tops[1:])
        assert found, name
    assert len(named) > 40


def test_an_exit_code_means_one_kind_of_failure_or_one_family() -> None:
    kinds = error_kinds()
    assert len({kind.id for kind in kinds}) == len(kinds)
    assert all(kind.hint and kind.summary for kind in kinds)
    with pytest.raises(ValueError, match="taken"):
        error_kind(
            "some-other-kind", kinds[0].exit_code, "A code that is taken.", "Join its family by naming the kind."
        )


@needs_promtool
@pytest.mark.parametrize("families", ALL_FAMILIES.values(), ids=ALL_FAMILIES.keys())
def test_promtool_finds_nothing_to_say_about_the_metrics(families: tuple[Family, ...]) -> None:
    text = Metrics(families, lambda: ()).render()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


@needs_promtool
def test_the_alerts_ring_when_they_should() -> None:
    folder = ROOT / "deploy/prometheus"
    tested = subprocess.run(
        ["promtool", "test", "rules", "drengine.rules.test.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_alerts_and_dashboard_name_only_metrics_that_exist() -> None:
    known = {family.full_name for families in ALL_FAMILIES.values() for family in families}
    rules = (ROOT / "deploy/prometheus/drengine.rules.yml").read_text()
    board = json.loads((ROOT / "deploy/grafana/drengine.json").read_text())
    queries = " ".join(target["expr"] for panel in board["panels"] for target in panel.get("targets", ()))
    for name in re.findall(r"drengine_[a-z_]+", rules + queries):
        assert name.removesuffix("_bucket") in known, name
