"""The rules of deploy/prometheus/rules as a PrometheusRule, the custom resource that prometheus-operator reads."""

from pathlib import Path

import yaml

HEADER = """\
# Generated from deploy/prometheus/rules by scripts/generate_monitoring.py (make docs); do not edit.
"""


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and no references."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def prometheus_rule(folder: Path) -> str:
    """Return the resource with the groups of all rule files in a folder."""
    groups = [group for path in sorted(folder.glob("*.yaml")) for group in yaml.safe_load(path.read_text())["groups"]]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "digitserve", "labels": {"app.kubernetes.io/name": "digitserve"}},
        "spec": {"groups": groups},
    }
    return HEADER + yaml.dump(resource, Dumper=_Dumper, sort_keys=False, width=120)
