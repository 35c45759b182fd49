"""Which host a new VM is placed on.

Only an attested host can get the keys of an encrypted VM; a plain VM may be placed on any host that answers. Pure.
"""

from collections.abc import Mapping, Sequence

from management.errors import PlacementReason, PlacementRefused
from management.model import Host, HostStatus


def choose_host(
    *,
    named: str,
    encrypted: bool,
    hosts: Sequence[Host],
    statuses: Mapping[str, HostStatus],
    vm_counts: Mapping[str, int],
) -> Host:
    """Choose the named host, or the suitable one with the fewest VMs.

    Args:
        named: Name of a host; empty: any.
        encrypted: Whether the VM needs keys.
        hosts: Those of the cluster.
        statuses: By host name; a host without one is taken as not connected.
        vm_counts: VMs placed so far, by host name.

    Raises:
        PlacementRefused: UNKNOWN_HOST, HOST_NOT_CONNECTED or HOST_NOT_ATTESTED of a named host; else NO_SUITABLE_HOST,
            which says for each host why.
    """
    if named:
        host = next((host for host in hosts if host.name == named), None)
        if host is None:
            known = ", ".join(sorted(host.name for host in hosts)) or "none"
            raise PlacementRefused(
                PlacementReason.UNKNOWN_HOST, f"no host {named[:100]!r} in the cluster; there are: {known}"
            )
        objection = _objection(host, statuses.get(host.name), encrypted)
        if objection is not None:
            reason, why = objection
            raise PlacementRefused(reason, f"host {host.name} {why}")
        return host
    suitable, objections = [], []
    for host in sorted(hosts, key=lambda host: (vm_counts.get(host.name, 0), host.name)):
        objection = _objection(host, statuses.get(host.name), encrypted)
        if objection is None:
            suitable.append(host)
        else:
            objections.append(f"{host.name} {objection[1]}")
    if not suitable:
        kind = "encrypted VM" if encrypted else "VM"
        details = "; ".join(sorted(objections)) or "the cluster has no hosts"
        raise PlacementRefused(PlacementReason.NO_SUITABLE_HOST, f"no host can take the {kind}: {details}")
    return suitable[0]


def _objection(host: Host, status: HostStatus | None, encrypted: bool) -> tuple[PlacementReason, str] | None:
    because = f" ({status.reason})" if status is not None and status.reason else ""
    if status is None or not status.connected:
        return PlacementReason.HOST_NOT_CONNECTED, f"does not answer{because}"
    if encrypted and not (status.attested and host.host_id):
        return PlacementReason.HOST_NOT_ATTESTED, f"is not attested{because}"
    return None
