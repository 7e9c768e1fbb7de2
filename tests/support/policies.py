"""What the manifests must have beyond the schema of Kubernetes; ``violations`` lists what they lack.

Each check yields one line per fault. ``tests/deploy`` shows for each that it finds a fault.
"""

import re
from collections.abc import Callable, Iterator

from digitserve.settings import Settings
from digitserve.supervision.supervisor import KILL_MARGIN_S
from support.manifests import Object

RESTRICTED_VOLUMES = frozenset({"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"})  # fmt: skip
"""Kinds of volumes that the Pod Security Standard "restricted" allows."""

MARGIN_S = 5
"""Seconds of ``terminationGracePeriodSeconds`` beyond all waits of a pod that ends: the kubelet is not exact."""

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

Check = Callable[[list[Object]], Iterator[str]]


def violations(objects: list[Object]) -> list[str]:
    """Return the faults of the objects of one folder."""
    return [fault for check in CHECKS for fault in check(objects)]


def _of(objects: list[Object], kind: str) -> Iterator[Object]:
    return (each for each in objects if each["kind"] == kind)


def _pods(objects: list[Object]) -> Iterator[Object]:
    return (each["spec"]["template"]["spec"] for each in _of(objects, "Deployment"))


def _containers(objects: list[Object]) -> Iterator[Object]:
    return (container for pod in _pods(objects) for container in pod["containers"] + pod.get("initContainers", []))


def _environment(container: Object) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container.get("env", [])}


def _labels(objects: list[Object]) -> dict[str, str]:
    """Return the labels of the pods."""
    labels: dict[str, str] = next(_of(objects, "Deployment"))["spec"]["template"]["metadata"]["labels"]
    return labels


def _drain_s(pod: Object) -> float:
    """Return the longest time from the deletion of a pod to its end, as far as its containers decide."""
    return max(
        container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        + float(_environment(container).get("DIGITSERVE_GRACE_S", Settings.grace_s))
        + KILL_MARGIN_S
        for container in pod["containers"]
    )


def restricted_pods(objects: list[Object]) -> Iterator[str]:
    """Pod Security Standard "restricted"."""
    for pod in _pods(objects):
        context = pod.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or context.get("runAsUser", 1) == 0:
            yield "the pod may run as root"
        if context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
            yield "the pod has no seccompProfile"
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(name):
                yield f"the pod uses {name}"
        for volume in pod.get("volumes", []):
            if not {*volume} - {"name"} <= RESTRICTED_VOLUMES:
                yield f"volume {volume['name']} is of a kind that 'restricted' forbids"


def restricted_containers(objects: list[Object]) -> Iterator[str]:
    """Pod Security Standard "restricted", and a read-only root file system."""
    for container in _containers(objects):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield "the container may gain privileges"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield "the container has capabilities"
        if context.get("runAsUser", 1) == 0 or context.get("runAsNonRoot") is False:
            yield "the container may run as root"
        if context.get("readOnlyRootFilesystem") is not True:
            yield "the root file system can be written"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield "the container uses a port of the node"


def isolated(objects: list[Object]) -> Iterator[str]:
    """Neither variables of Services nor access to the API server, also not by the ServiceAccount."""
    accounts = {each["metadata"]["name"]: each for each in _of(objects, "ServiceAccount")}
    for pod in _pods(objects):
        if pod.get("enableServiceLinks") is not False:
            yield "enableServiceLinks is not false"
        if pod.get("automountServiceAccountToken") is not False:
            yield "a token for the API server is mounted"
        if pod.get("serviceAccountName") not in accounts:
            yield "the ServiceAccount of the pod is missing"
    for account in accounts.values():
        if account.get("automountServiceAccountToken") is not False:
            yield "the ServiceAccount mounts its token"


def no_egress(objects: list[Object]) -> Iterator[str]:
    """A NetworkPolicy without egress, whose ingress names its sources and ports."""
    policies = [*_of(objects, "NetworkPolicy")]
    if not policies:
        yield "there is no NetworkPolicy"
    for policy in policies:
        spec = policy["spec"]
        if {*spec["policyTypes"]} != {"Ingress", "Egress"} or spec.get("egress"):
            yield "the NetworkPolicy allows egress"
        if not all(rule.get("from") and rule.get("ports") for rule in spec["ingress"]):
            yield "the NetworkPolicy allows ingress from everywhere"


def probes(objects: list[Object]) -> Iterator[str]:
    """All probes, each of a kind that works; a drain, or a restart of a worker, is no reason to restart the container."""
    for pod in _pods(objects):
        for container in pod["containers"]:
            for name in PROBES:
                yield from (f"{name} {fault}" for fault in _probe_faults(container.get(name, {}), container))
            if _fails_after_s(container.get("livenessProbe", {})) <= pod.get("terminationGracePeriodSeconds", 30):
                yield "livenessProbe fails during a drain"


def _probe_faults(probe: Object, container: Object) -> Iterator[str]:
    if "exec" in probe:
        if probe["exec"]["command"] != ["digitserve", "healthcheck"]:
            yield "runs another command than the health check"
    elif "grpc" not in probe:
        yield "is missing"
    elif "DIGITSERVE_TLS_CERTIFICATE" in _environment(container):
        yield "speaks no TLS"
    elif probe["grpc"].get("port") not in {port["containerPort"] for port in container["ports"]}:
        yield "calls a port that the container does not have"
    # The default of 1 s is too short for a container whose CPU quota is used up.
    if probe.get("timeoutSeconds", 1) < 5:
        yield "has no timeout of at least 5 s"


def _fails_after_s(probe: Object) -> int:
    return int(probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3))


def graceful(objects: list[Object]) -> Iterator[str]:
    """A pod gets the time that its drain may take, and leaves proxies time to notice."""
    for pod in _pods(objects):
        grace_s, needed_s = pod.get("terminationGracePeriodSeconds", 30), _drain_s(pod) + MARGIN_S
        if grace_s < needed_s:
            yield f"terminationGracePeriodSeconds is {grace_s}; a drain takes up to {needed_s:g} s"
        if not all(container.get("lifecycle", {}).get("preStop") for container in pod["containers"]):
            yield "preStop is missing"


def resources(objects: list[Object]) -> Iterator[str]:
    """Whole CPUs, because the service starts one worker per CPU of its quota; requests equal limits (class Guaranteed)."""
    for container in _containers(objects):
        limits, requests = container.get("resources", {}).get("limits", {}), container.get("resources", {}).get("requests", {})  # fmt: skip
        if not re.fullmatch("[1-9][0-9]*", str(limits.get("cpu", ""))):
            yield f"the CPU limit is {limits.get('cpu')}; expected whole CPUs"
        # A request for a device is its limit.
        if not limits.get("memory") or {name: limits.get(name) for name in ("cpu", "memory")} != requests:
            yield "requests and limits of CPU and memory differ"


def selectors(objects: list[Object]) -> Iterator[str]:
    """Each selector selects the pods; a ServiceMonitor selects the Service."""
    labels = _labels(objects)
    for pod in _pods(objects):
        for spread in pod.get("topologySpreadConstraints", []):
            if not spread["labelSelector"]["matchLabels"].items() <= labels.items():
                yield f"the spread over {spread['topologyKey']} does not select the pods"
    selected = {
        "Deployment": lambda spec: spec["selector"]["matchLabels"],
        "Service": lambda spec: spec["selector"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
    }
    for kind, selector in selected.items():
        found = [*_of(objects, kind)]
        if not found:
            yield f"there is no {kind}"
        for each in found:
            if not selector(each["spec"]) or not selector(each["spec"]).items() <= labels.items():
                yield f"the {kind} does not select the pods"
    services = [each["metadata"]["labels"].items() for each in _of(objects, "Service")]
    for monitor in _of(objects, "ServiceMonitor"):
        if not any(monitor["spec"]["selector"]["matchLabels"].items() <= service for service in services):
            yield "the ServiceMonitor does not select the Service"


def ports(objects: list[Object]) -> Iterator[str]:
    """Ports have names, whatever refers to a port uses one of them, and clients can reach those of the Service."""
    container_ports = {port.get("name") for each in _containers(objects) for port in each["ports"]}
    service_ports = {port.get("name") for each in _of(objects, "Service") for port in each["spec"]["ports"]}
    if None in container_ports | service_ports:
        yield "a port has no name"
    offered = {port.get("targetPort") for each in _of(objects, "Service") for port in each["spec"]["ports"]}
    admitted = {
        port["port"]
        for each in _of(objects, "NetworkPolicy")
        for rule in each["spec"]["ingress"]
        for port in rule.get("ports", [])
    }
    yield from (f"port {port} is not a port of the container" for port in (offered | admitted) - container_ports)
    yield from (f"the NetworkPolicy admits nobody to port {port} of the Service" for port in offered - admitted)
    scraped = {endpoint["port"] for each in _of(objects, "ServiceMonitor") for endpoint in each["spec"]["endpoints"]}
    yield from (f"port {port} is not a port of the Service" for port in scraped - service_ports)


def scraping(objects: list[Object]) -> Iterator[str]:
    """Prometheus uses TLS and a token where the service needs them."""
    variables = {name for container in _containers(objects) for name in _environment(container)}
    for monitor in _of(objects, "ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            if (endpoint.get("scheme", "http") == "https") != ("DIGITSERVE_TLS_CERTIFICATE" in variables):
                yield "only one of the service and Prometheus uses TLS"
            if "DIGITSERVE_TOKEN_FILE" in variables and "authorization" not in endpoint:
                yield "Prometheus has no token"


def available(objects: list[Object]) -> Iterator[str]:
    """Nodes and zones may fail, nodes may be drained, and rollouts have no downtime."""
    for budget in _of(objects, "PodDisruptionBudget"):
        if budget["spec"].get("maxUnavailable") != 1:
            yield "the PodDisruptionBudget does not allow exactly one pod to be unavailable"
        if budget["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield "the PodDisruptionBudget blocks the drain of a node because of pods that are not ready"
    for deployment in _of(objects, "Deployment"):
        if deployment["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxUnavailable") != 0:
            yield "a rollout removes a pod before its successor is ready"
        spreads = deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        if {(each["topologyKey"], each["whenUnsatisfiable"]) for each in spreads} != {
            ("topology.kubernetes.io/zone", "ScheduleAnyway"),
            ("kubernetes.io/hostname", "ScheduleAnyway"),
        }:
            yield "pods are not spread over zones and nodes"


def autoscaling(objects: list[Object]) -> Iterator[str]:
    """An autoscaler scales the Deployment, which then does not set the number of replicas."""
    deployments = {each["metadata"]["name"]: each for each in _of(objects, "Deployment")}
    for autoscaler in _of(objects, "HorizontalPodAutoscaler"):
        spec = autoscaler["spec"]
        target = spec["scaleTargetRef"]
        if target["kind"] != "Deployment" or target["name"] not in deployments:
            yield "the autoscaler does not target the Deployment"
        elif "replicas" in deployments[target["name"]]["spec"]:
            yield "both the autoscaler and the Deployment set the number of replicas"
        if spec["minReplicas"] < 2:
            yield "the autoscaler allows a single pod"


def images(objects: list[Object]) -> Iterator[str]:
    """An image has a tag that is not moved."""
    for container in _containers(objects):
        _, _, tag = container["image"].rpartition("/")[2].partition(":")
        if tag in {"", "latest"}:
            yield f"image {container['image']} has no fixed tag"


def labels(objects: list[Object]) -> Iterator[str]:
    """All objects can be found by the name of the application."""
    for each in objects:
        if each["metadata"].get("labels", {}).get("app.kubernetes.io/name") != "digitserve":
            yield f"{each['kind']} has no label app.kubernetes.io/name"


CHECKS: tuple[Check, ...] = (
    restricted_pods, restricted_containers, isolated, no_egress, probes, graceful, resources, selectors, ports, scraping,
    available, autoscaling, images, labels,
)  # fmt: skip
