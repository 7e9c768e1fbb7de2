"""Each policy for manifests finds the faults that it is for."""

import copy
from collections.abc import Callable

import pytest

from support.manifests import Object, container, find, render
from support.policies import CHECKS


def _pod(objects: list[Object]) -> Object:
    pod: Object = find(objects, "Deployment")["spec"]["template"]["spec"]
    return pod


def _spec(kind: str) -> Callable[[list[Object]], Object]:
    return lambda objects: find(objects, kind)["spec"]


def _security(objects: list[Object]) -> Object:
    context: Object = container(objects)["securityContext"]
    return context


FAULTS: list[tuple[str, Callable[[list[Object]], object], str]] = [
    ("restricted_pods", lambda o: _pod(o)["securityContext"].pop("runAsNonRoot"), "may run as root"),
    ("restricted_pods", lambda o: _pod(o)["securityContext"].update(runAsUser=0), "may run as root"),
    ("restricted_pods", lambda o: _pod(o)["securityContext"].pop("seccompProfile"), "seccompProfile"),
    ("restricted_pods", lambda o: _pod(o).update(hostNetwork=True), "hostNetwork"),
    ("restricted_pods", lambda o: _pod(o).update(volumes=[{"name": "v", "hostPath": {"path": "/"}}]), "volume v"),
    ("restricted_containers", lambda o: _security(o).pop("allowPrivilegeEscalation"), "privileges"),
    ("restricted_containers", lambda o: _security(o).update(privileged=True), "privileges"),
    ("restricted_containers", lambda o: _security(o).pop("capabilities"), "capabilities"),
    ("restricted_containers", lambda o: _security(o).update(runAsUser=0), "may run as root"),
    ("restricted_containers", lambda o: _security(o).pop("readOnlyRootFilesystem"), "can be written"),
    ("restricted_containers", lambda o: container(o)["ports"][0].update(hostPort=1), "port of the node"),
    ("isolated", lambda o: _pod(o).pop("enableServiceLinks"), "enableServiceLinks"),
    ("isolated", lambda o: _pod(o).pop("automountServiceAccountToken"), "token"),
    ("isolated", lambda o: _pod(o).update(serviceAccountName="default"), "is missing"),
    ("isolated", lambda o: find(o, "ServiceAccount").pop("automountServiceAccountToken"), "mounts its token"),
    ("no_egress", lambda o: o.remove(find(o, "NetworkPolicy")), "no NetworkPolicy"),
    ("no_egress", lambda o: _spec("NetworkPolicy")(o).update(egress=[{}]), "egress"),
    ("no_egress", lambda o: _spec("NetworkPolicy")(o).update(policyTypes=["Ingress"]), "egress"),
    ("no_egress", lambda o: _spec("NetworkPolicy")(o)["ingress"][0].pop("from"), "everywhere"),
    ("probes", lambda o: container(o).pop("startupProbe"), "startupProbe is missing"),
    ("probes", lambda o: container(o)["livenessProbe"].pop("grpc"), "livenessProbe is missing"),
    ("probes", lambda o: container(o)["readinessProbe"]["grpc"].update(port=1), "does not have"),
    ("probes", lambda o: container(o)["readinessProbe"].update(exec={"command": ["sh"]}), "another command"),
    ("probes", lambda o: container(o)["readinessProbe"].pop("timeoutSeconds"), "timeout"),
    ("probes", lambda o: container(o)["livenessProbe"].update(failureThreshold=3), "during a drain"),
    ("probes", lambda o: container(o).update(env=[{"name": "DIGITSERVE_TLS_CERTIFICATE"}]), "speaks no TLS"),
    ("graceful", lambda o: _pod(o).pop("terminationGracePeriodSeconds"), "a drain takes up to 32 s"),
    ("graceful", lambda o: container(o).update(env=[{"name": "DIGITSERVE_GRACE_S", "value": "60"}]), "72 s"),
    ("graceful", lambda o: container(o).pop("lifecycle"), "preStop"),
    ("resources", lambda o: container(o).pop("resources"), "CPU limit is None"),
    ("resources", lambda o: container(o)["resources"]["limits"].update(cpu="1500m"), "1500m; expected whole"),
    ("resources", lambda o: container(o)["resources"]["requests"].pop("memory"), "differ"),
    ("selectors", lambda o: _spec("Deployment")(o)["selector"]["matchLabels"].update(a="b"), "the Deployment does"),
    ("selectors", lambda o: _pod(o)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].update(a="b"), "zone"),
    ("selectors", lambda o: _spec("Service")(o)["selector"].update(a="b"), "the Service does not"),
    ("selectors", lambda o: _spec("PodDisruptionBudget")(o)["selector"]["matchLabels"].clear(), "Budget does not"),
    ("selectors", lambda o: _spec("NetworkPolicy")(o)["podSelector"]["matchLabels"].update(a="b"), "NetworkPolicy does"),
    ("selectors", lambda o: o.remove(find(o, "PodDisruptionBudget")), "no PodDisruptionBudget"),
    ("selectors", lambda o: _spec("ServiceMonitor")(o)["selector"]["matchLabels"].update(a="b"), "ServiceMonitor"),
    ("ports", lambda o: container(o)["ports"][0].pop("name"), "no name"),
    ("ports", lambda o: _spec("Service")(o)["ports"][0].update(targetPort="rpc"), "port rpc"),
    ("ports", lambda o: _spec("NetworkPolicy")(o)["ingress"][0]["ports"][0].update(port="rpc"), "port rpc"),
    ("ports", lambda o: _spec("NetworkPolicy")(o)["ingress"].pop(), "nobody to port http"),
    ("ports", lambda o: _spec("ServiceMonitor")(o)["endpoints"][0].update(port="metrics"), "of the Service"),
    ("scraping", lambda o: container(o).update(env=[{"name": "DIGITSERVE_TLS_CERTIFICATE"}]), "uses TLS"),
    ("scraping", lambda o: _spec("ServiceMonitor")(o)["endpoints"][0].update(scheme="https"), "uses TLS"),
    ("scraping", lambda o: container(o).update(env=[{"name": "DIGITSERVE_TOKEN_FILE"}]), "no token"),
    ("available", lambda o: _spec("PodDisruptionBudget")(o).update(maxUnavailable=2), "exactly one"),
    ("available", lambda o: _spec("PodDisruptionBudget")(o).pop("unhealthyPodEvictionPolicy"), "drain of a node"),
    ("available", lambda o: _spec("Deployment")(o).pop("strategy"), "rollout"),
    ("available", lambda o: _pod(o)["topologySpreadConstraints"].pop(), "spread"),
    ("autoscaling", lambda o: _spec("HorizontalPodAutoscaler")(o)["scaleTargetRef"].update(name="x"), "target"),
    ("autoscaling", lambda o: _spec("HorizontalPodAutoscaler")(o).update(minReplicas=1), "single pod"),
    ("autoscaling", lambda o: _spec("Deployment")(o).update(replicas=2), "both"),
    ("images", lambda o: container(o).update(image="registry:5000/digitserve"), "tag"),
    ("images", lambda o: container(o).update(image="digitserve:latest"), "tag"),
    ("labels", lambda o: find(o, "Service")["metadata"]["labels"].pop("app.kubernetes.io/name"), "Service has no label"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "damage", "message"), FAULTS, ids=map(str, range(len(FAULTS))))
def test_each_policy_finds_its_faults(check: str, damage: Callable[[list[Object]], object], message: str) -> None:
    """Each policy rejects manifests with one fault, and names it."""
    objects = copy.deepcopy(render("overlays/monitoring"))
    damage(objects)
    (policy,) = [each for each in CHECKS if each.__name__ == check]  # type: ignore[attr-defined]
    assert any(message in fault for fault in policy(objects)), [*policy(objects)]


def test_every_policy_has_a_fault() -> None:
    """No policy is without a test."""
    assert {name for name, *_ in FAULTS} == {check.__name__ for check in CHECKS}  # type: ignore[attr-defined]
