"""The Pod Security Standard `restricted`, rule by rule, as Kubernetes' documentation lists it (and `baseline` in it).

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.k8s.manifests import Manifest, Pod, containers, pods

__all__ = ["POD_SECURITY"]

_SAFE_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    }
)
_VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
        "image",
    }
)
_SELINUX_TYPES = frozenset({"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})

Check = Callable[[Pod], Iterator[str]]


def _context(thing: dict[str, Any]) -> dict[str, Any]:
    return thing.get("securityContext") or {}


def _contexts(pod: Pod) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pod's security context and every container's, each with its name."""
    yield "pod", _context(pod.spec)
    for container in containers(pod):
        yield container["name"], _context(container)


def host_process(pod: Pod) -> Iterator[str]:
    for name, context in _contexts(pod):
        if (context.get("windowsOptions") or {}).get("hostProcess"):
            yield f"{name}: hostProcess"


def host_namespaces(pod: Pod) -> Iterator[str]:
    yield from (name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(name))


def privileged(pod: Pod) -> Iterator[str]:
    yield from (f"{name}: privileged" for name, context in _contexts(pod) if context.get("privileged"))


def capabilities(pod: Pod) -> Iterator[str]:
    for container in containers(pod):
        found = _context(container).get("capabilities") or {}
        if "ALL" not in (found.get("drop") or []):
            yield f"{container['name']}: capabilities.drop lacks ALL"
        extra = set(found.get("add") or []) - {"NET_BIND_SERVICE"}
        if extra:
            yield f"{container['name']}: adds {', '.join(sorted(extra))}"


def volume_types(pod: Pod) -> Iterator[str]:
    for volume in pod.spec.get("volumes") or []:
        kinds = set(volume) - {"name"}
        if kinds - _VOLUMES:
            yield f"volume {volume['name']}: {', '.join(sorted(kinds - _VOLUMES))}"


def host_ports(pod: Pod) -> Iterator[str]:
    for container in containers(pod):
        yield from (f"{container['name']}: hostPort" for port in container.get("ports") or [] if port.get("hostPort"))


def host_probes(pod: Pod) -> Iterator[str]:
    for container in containers(pod):
        hooks = [container.get(kind) or {} for kind in ("livenessProbe", "readinessProbe", "startupProbe")]
        hooks += list((container.get("lifecycle") or {}).values())
        for hook in hooks:
            if any((hook.get(kind) or {}).get("host") for kind in ("httpGet", "tcpSocket")):
                yield f"{container['name']}: a probe or hook names a host"


def app_armor(pod: Pod) -> Iterator[str]:
    for name, context in _contexts(pod):
        if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: appArmorProfile"
    for key, value in pod.annotations.items():
        if key.startswith("container.apparmor.security.beta.kubernetes.io/") and not (
            value == "runtime/default" or value.startswith("localhost/")
        ):
            yield f"annotation {key}"


def se_linux(pod: Pod) -> Iterator[str]:
    for name, context in _contexts(pod):
        options = context.get("seLinuxOptions") or {}
        if options.get("type", "") not in _SELINUX_TYPES or options.get("user") or options.get("role"):
            yield f"{name}: seLinuxOptions"


def proc_mount(pod: Pod) -> Iterator[str]:
    for container in containers(pod):
        if _context(container).get("procMount", "Default") != "Default":
            yield f"{container['name']}: procMount"


def sysctls(pod: Pod) -> Iterator[str]:
    for one in _context(pod.spec).get("sysctls") or []:
        if one["name"] not in _SAFE_SYSCTLS:
            yield f"sysctl {one['name']}"


def privilege_escalation(pod: Pod) -> Iterator[str]:
    for container in containers(pod):
        if _context(container).get("allowPrivilegeEscalation") is not False:
            yield f"{container['name']}: allowPrivilegeEscalation is not false"


def run_as_non_root(pod: Pod) -> Iterator[str]:
    for container in containers(pod):
        own = _context(container).get("runAsNonRoot")
        if not (_context(pod.spec).get("runAsNonRoot") if own is None else own):
            yield f"{container['name']}: runAsNonRoot is not true"


def run_as_user(pod: Pod) -> Iterator[str]:
    yield from (f"{name}: runAsUser 0" for name, context in _contexts(pod) if context.get("runAsUser") == 0)


def seccomp(pod: Pod) -> Iterator[str]:
    allowed = ("RuntimeDefault", "Localhost")
    of_pod = (_context(pod.spec).get("seccompProfile") or {}).get("type")
    if of_pod is not None and of_pod not in allowed:
        yield f"pod: seccompProfile {of_pod}"
    for container in containers(pod):
        found = (_context(container).get("seccompProfile") or {}).get("type", of_pod)
        if found not in allowed:
            yield f"{container['name']}: seccompProfile {found}"


def _over_pods(check: Check) -> Callable[[Sequence[Manifest]], list[str]]:
    def over(manifests: Sequence[Manifest]) -> list[str]:
        return [f"{pod.owner}: {problem}" for pod in pods(manifests) for problem in check(pod)]

    return over


POD_SECURITY: dict[str, Callable[[Sequence[Manifest]], list[str]]] = {
    f"pod-security/{check.__name__.replace('_', '-')}": _over_pods(check)
    for check in (
        host_process,
        host_namespaces,
        privileged,
        capabilities,
        volume_types,
        host_ports,
        host_probes,
        app_armor,
        se_linux,
        proc_mount,
        sysctls,
        privilege_escalation,
        run_as_non_root,
        run_as_user,
        seccomp,
    )
}
"""Rule by name: what breaks it, one line each."""
