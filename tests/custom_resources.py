"""Kinds that the cluster's operators define: what deploy/kubernetes uses of them, and nothing else, as JSON Schema.

Written down from the published definitions: ServiceMonitor and PrometheusRule of prometheus-operator 0.92
(example/prometheus-operator-crd), ServingRuntime and InferenceService of KServe 0.20 (config/crd/full). A manifest that
uses a further field needs it here, after a look at the definition.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION: Schema = {"type": "string", "pattern": r"^(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?$", "minLength": 2}
COUNT: Schema = {"type": "integer", "minimum": 0}


def fields(*required: str, **properties: Schema) -> Schema:
    """An object with these properties only."""
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def each(item: Schema) -> Schema:
    """A list of one or more."""
    return {"type": "array", "items": item, "minItems": 1}


RULE = fields("expr", record=TEXT, alert=TEXT, expr=TEXT, **{"for": DURATION}, labels=TEXTS, annotations=TEXTS)
ENDPOINT = fields("port", port=TEXT, path=TEXT, interval=DURATION, scrapeTimeout=DURATION)
FORMAT = fields("name", name=TEXT, version=TEXT, autoSelect={"type": "boolean"})
PROTOCOL: Schema = {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}
CONTAINERS: Schema = {"type": "array", "items": {"type": "object"}, "minItems": 1}
"""Examined as those of a pod."""

SPECIFICATIONS: dict[tuple[str, str], Schema] = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): fields(
        "selector", "endpoints", jobLabel=TEXT, selector=fields(matchLabels=TEXTS), endpoints=each(ENDPOINT)
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): fields(
        groups=each(fields("name", name=TEXT, interval=DURATION, rules=each(RULE)))
    ),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): fields(
        "containers",
        annotations=TEXTS,
        supportedModelFormats=each(FORMAT),
        protocolVersions=each(PROTOCOL),
        containers=CONTAINERS,
    ),
    ("serving.kserve.io/v1beta1", "InferenceService"): fields(
        "predictor",
        predictor=fields(
            minReplicas=COUNT,
            maxReplicas=COUNT,
            scaleMetric={"enum": ["cpu", "memory", "concurrency", "rps"]},
            scaleTarget=COUNT,
            model=fields(
                "modelFormat",
                modelFormat=fields("name", name=TEXT, version=TEXT),
                runtime=TEXT,
                protocolVersion=PROTOCOL,
                storageUri=TEXT,
            ),
        ),
    ),
}
"""By API version and kind."""
