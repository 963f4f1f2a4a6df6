"""Cuts a Python process off from the network, and writes down whom it wanted to reach."""

import os
import socket
from pathlib import Path
from typing import Any

LOG = Path(os.environ.get("OFFLINE_LOG", os.devnull))
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")

_look_up, _connect, _connect_ex = (
    socket.getaddrinfo,
    socket.socket.connect,
    socket.socket.connect_ex,
)


def _refused(name: Any) -> bool:
    text = name.decode() if isinstance(name, bytes) else name
    if text is None or text == "" or str(text).startswith(LOOPBACK):
        return False
    with LOG.open("a") as log:
        log.write(f"{text}\n")
    return True


def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    if _refused(host):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return _look_up(host, *args, **kwargs)


class Socket(socket.socket):
    """A socket that reaches this machine only."""

    def connect(self, address: Any) -> None:
        if isinstance(address, tuple) and _refused(address[0]):
            raise OSError(101, "Network is unreachable")
        _connect(self, address)

    def connect_ex(self, address: Any) -> int:
        if isinstance(address, tuple) and _refused(address[0]):
            return 101
        return _connect_ex(self, address)


if __name__ == "sitecustomize":  # as Python itself imports it
    socket.getaddrinfo = getaddrinfo
    socket.socket = Socket  # type: ignore[misc]
