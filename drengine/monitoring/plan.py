"""Everything that is written for a site's monitoring, by the path in its directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from drengine.monitoring.dashboard import dashboard
from drengine.monitoring.files import Wanted
from drengine.monitoring.grafana import dashboards, datasource
from drengine.monitoring.prometheus import Site, configuration
from drengine.monitoring.rules import RULES_FILE, Promise, promise_rules, rules_text

TOKEN_FILE = "drengine.token"
CA_FILE = "ca.pem"
PROMETHEUS_FILE = "prometheus.yml"
DASHBOARDS = "grafana/dashboards"


def site_files(site: Site, promises: Iterable[Promise], *, prometheus_url: str, at: Path) -> dict[str, Wanted]:
    """All but the token and the CA; `at` is where the directory will lie for Grafana."""
    return {
        PROMETHEUS_FILE: Wanted(configuration(site, token_file=TOKEN_FILE, ca_file=CA_FILE)),
        f"rules/{RULES_FILE}": Wanted(rules_text()),
        "rules/drengine-runbooks.rules.yml": Wanted(promise_rules(promises)),
        "grafana/provisioning/datasources/drengine.yml": Wanted(datasource(prometheus_url)),
        "grafana/provisioning/dashboards/drengine.yml": Wanted(dashboards(at / DASHBOARDS)),
        f"{DASHBOARDS}/drengine.json": Wanted(dashboard()),
    }
