"""What Grafana would ask Prometheus for the dashboards of deploy/grafana."""

from __future__ import annotations

import json
from pathlib import Path

DIRECTORY = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards"


def queries(job: str) -> dict[str, str]:
    """By title and letter of the panel: each query, with the variables as Grafana fills them in."""
    values = {"$__rate_interval": "10s", "$job": job, "$model": ".*"}
    found = {}
    for path in DIRECTORY.glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"]
                for variable, value in values.items():
                    expression = expression.replace(variable, value)
                assert "$" not in expression, expression
                found[f"{panel['title']} {target['refId']}"] = expression
    return found
