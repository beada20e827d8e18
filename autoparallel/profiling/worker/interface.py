"""The network interface by which ranks of other hosts reach this one.

gloo asks the resolver for the host's own name, and many a host has itself in `/etc/hosts` at an
address that only it can reach; its ranks then wait for each other in vain. NCCL looks for itself.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import MutableMapping

_SIOCGIFADDR = 0x8915
VARIABLE = "GLOO_SOCKET_IFNAME"


def name_interface(environment: MutableMapping[str, str]) -> None:
    """Tell gloo the interface that leads to rank 0, unless somebody has told it already."""
    if environment.get(VARIABLE):
        return
    with contextlib.suppress(OSError):
        own = address_towards(environment.get("MASTER_ADDR", "127.0.0.1"))
        if not own.startswith("127.") and (name := interface_of(own)):
            environment[VARIABLE] = name


def address_towards(host: str) -> str:
    """This host's IPv4 address on the way to another; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str:
    """The interface that has an IPv4 address; empty when none has, or where Linux is not."""
    try:
        import fcntl
    except ImportError:
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            asked = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""
