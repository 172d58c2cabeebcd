"""A TCP proxy before an HTTP server that does to requests what networks and servers do on bad days.

It reads a whole request, looks whether a fault is armed for it, and passes it on (or not) over a connection of its own;
each request is the only one of its connection. With certificates it speaks TLS to its clients.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

__all__ = ["Fault", "FaultProxy", "make_authority"]

Kind = Literal["lost answer", "reset", "cut upload", "truncated", "slow", "status", "not http"]

_LAST = struct.pack("ii", 1, 0)
_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
_CODES = {400: "BadRequest", 403: "AccessDenied", 409: "ConditionalRequestConflict", 412: "PreconditionFailed"}
_CODES |= {500: "InternalError", 503: "SlowDown"}


@dataclass
class Fault:
    """What befalls requests.

    Attributes:
        kind: `lost answer`: the server gets the request, its answer is dropped; `reset`: the connection is reset before
            the server gets anything; `cut upload`: it is reset after half of the body went to the server; `truncated`:
            half of the answer's body comes; `slow`: the answer comes `seconds` late; `status`: the proxy answers with
            `status` and the server gets nothing; `not http`: it answers something else.
        match: A regular expression that method, path and query (`PUT /bucket/key`) must contain.
        times: How many requests it befalls; afterwards it is over.
        code: The error code of the answer that `status` gives.
        body: Its body, in place of an S3 error.
        action: Called when it befalls a request, before anything else.
    """

    kind: Kind
    match: str = ""
    times: int = 1
    status: int = 500
    seconds: float = 0.0
    code: str = ""
    body: str | None = None
    action: object = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def befalls(self, line: str) -> bool:
        with self._lock:
            if self.times <= 0 or not re.search(self.match, line):
                return False
            self.times -= 1
            return True


class FaultProxy:
    """The proxy; a context manager.

    Attributes:
        requests: Method, path and query of all requests so far.
    """

    def __init__(self, host: str, port: int, *, certificates: Path | None = None) -> None:
        """Args: the server's `host` and `port`; `certificates`: a file with key and certificate, for TLS."""
        self._server = (host, port)
        self._faults: list[Fault] = []
        self._tls = None
        if certificates is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificates)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: set[socket.socket] = set()
        self.requests: list[str] = []

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            connection.close()

    @property
    def address(self) -> str:
        """The URL that clients use."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"

    def arm(self, kind: Kind, match: str = "", **rest: object) -> Fault:
        """Arms a fault; returns it."""
        fault = Fault(kind, match, **rest)  # type: ignore[arg-type]
        self._faults.append(fault)
        return fault

    def disarm(self) -> None:
        """Ends all faults."""
        self._faults.clear()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._connections.add(connection)
        try:
            with contextlib.suppress(OSError, ssl.SSLError, ValueError):
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                connection.settimeout(120)
                self._answer(connection)
        finally:
            self._connections.discard(connection)
            with contextlib.suppress(OSError):
                connection.close()

    def _answer(self, client: socket.socket) -> None:
        stream = client.makefile("rb")
        head, body = _read_request(client, stream)
        if not head:
            return
        line = " ".join(head[0].decode("latin-1").split()[:2])
        self.requests.append(line)
        fault = next((each for each in list(self._faults) if each.befalls(line)), None)
        if fault is not None and callable(fault.action):
            fault.action()
        kind = fault.kind if fault else None
        if kind == "reset":
            _reset(client)
        elif kind == "not http":
            client.sendall(b"SSH-2.0-none\r\n")
        elif kind == "status":
            assert fault is not None
            client.sendall(_error(fault))
        elif kind == "cut upload":
            with self._passed_on(head, body[: len(body) // 2]):
                _reset(client)
        else:
            with self._passed_on(head, body) as server:
                self._relay(server, client, fault)

    def _relay(self, server: socket.socket, client: socket.socket, fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        if kind in ("lost answer", "truncated"):
            answer = b"".join(iter(lambda: server.recv(65536), b""))
            end = answer.find(b"\r\n\r\n") + 4
            if kind == "truncated":
                client.sendall(answer[: end + (len(answer) - end) // 2])
            _reset(client)
            return
        if fault is not None:
            time.sleep(fault.seconds)
        for part in iter(lambda: server.recv(65536), b""):
            client.sendall(part)

    @contextlib.contextmanager
    def _passed_on(self, head: list[bytes], body: bytes) -> Iterator[socket.socket]:
        try:
            server = socket.create_connection(self._server, timeout=120)
        except OSError:  # it is down: to the client that looks as it would without a proxy
            yield _closed()
            return
        with server:
            server.sendall(b"\r\n".join([*head, b"Connection: close", b"", b""]) + body)
            yield server


def _closed() -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours


def _read_request(client: socket.socket, stream: BinaryIO) -> tuple[list[bytes], bytes]:
    """Head lines, without those that are about the connection, and the body."""
    head, length = [], 0
    while line := stream.readline().rstrip(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.strip().lower()
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            raise ValueError("the proxy reads no bodies in chunks")
        if name == b"expect":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif name != b"connection":
            head.append(line)
    return head, stream.read(length)


def _error(fault: Fault) -> bytes:
    code = fault.code or _CODES.get(fault.status, "Error")
    body = (_ERROR.format(code=code) if fault.body is None else fault.body).encode()
    head = f"HTTP/1.1 {fault.status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


def _reset(client: socket.socket) -> None:
    """Ends a connection with RST in place of FIN."""
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LAST)
    client.close()


def make_authority(folder: Path) -> tuple[Path, Path]:
    """Makes a certificate authority and a server certificate for 127.0.0.1 that it signed.

    Returns:
        The authority's certificate, and a file with the server's key and certificate.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("tests"))
            .public_key(key.public_key())
        )
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
            now + datetime.timedelta(days=1)
        )

    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("tests", authority).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    root = root.sign(authority, hashes.SHA256())
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = certificate("server", server).add_extension(address, critical=False).sign(authority, hashes.SHA256())
    pem = serialization.Encoding.PEM
    key = server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "authority.pem").write_bytes(root.public_bytes(pem))
    (folder / "server.pem").write_bytes(key + leaf.public_bytes(pem))
    return folder / "authority.pem", folder / "server.pem"
