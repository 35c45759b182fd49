"""The TLS name under which a host's agent proves *which* host it is.

gRPC lets a client check a server's name and nothing else, so the join certificate carries a DNS name made from the
host id, and the management server demands exactly that name. Pure.
"""

import hashlib


def agent_server_name(host_name: str, host_id: str) -> str:
    """The DNS name of a host's agent, with labels of 32 digits (63 is the most that DNS allows).

    Args:
        host_name: Name of the host.
        host_id: 64 hexadecimal digits; empty for a host without a TPM, whose name then stands for it.
    """
    if host_id:
        return f"{host_id[:32]}.{host_id[32:]}.host.garant"
    digest = hashlib.sha256(host_name.encode()).hexdigest()
    return f"{digest[:32]}.{digest[32:]}.name.garant"
