"""Writes prometheus-rule.yaml: the rules of deploy/prometheus as the Prometheus operator wants them.

make rules
"""

from pathlib import Path

import yaml

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "prometheus" / "rules"


def document() -> str:
    """The custom resource, as YAML."""
    groups = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "stn-serve", "labels": {"app.kubernetes.io/name": "stn-serve"}},
        "spec": {"groups": groups},
    }
    return "# Written by `make rules` from deploy/prometheus/rules.\n" + yaml.safe_dump(
        resource, sort_keys=False, width=120
    )


if __name__ == "__main__":
    (HERE / "prometheus-rule.yaml").write_text(document())
