"""Whether the coordinator can be reached from here, step by step, and who answers there.

For people (`doctor --federation`), and for a client that must know the coordinator by its fingerprint: gRPC checks an
authority's signature, and has no switch for a fingerprint.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
import socket
import ssl
import urllib.parse
import urllib.request
from dataclasses import dataclass

from colearn_hpc.errors import ColearnError
from colearn_hpc.federation.agreement import Federation
from colearn_hpc.federation.checks import RefusedError, why_not_coordinator
from colearn_hpc.federation.identity import CERTIFICATE, KEY, Identity

_PATIENCE = 10.0  # s, for each step
_LONGEST_ANSWER = 1 << 14  # bytes, of a proxy


class UnreachableError(ColearnError, ConnectionError):
    """There is no connection to the coordinator."""

    key = "identity"


@dataclass(frozen=True)
class Answer:
    """Who answered.

    Attributes:
        certificate: that it showed, PEM; TLS has seen that it has the key, and nothing else is checked yet.
        version: of TLS.
        refusal: what it said of this side's certificate; empty: it let us in.
    """

    certificate: bytes
    version: str
    refusal: str


def coordinator_certificate(
    federation: Federation, identity: Identity | None = None, patience: float = _PATIENCE
) -> bytes:
    """The coordinator's certificate, PEM, after its fingerprint was compared with ``federation.yaml``.

    gRPC takes it as the one certificate to trust (``root_certificates``). With the authority's instead, any other
    certificate that the authority has signed for a server would pass.

    Raises:
        UnreachableError: nobody answers.
        RefusedError: somebody else does.
    """
    answer = shake_hands(connect(federation, patience), identity, patience)
    if against := why_not_coordinator(answer.certificate, federation, dt.datetime.now(dt.UTC)):
        raise RefusedError(against[0])
    return answer.certificate


def proxy_for(host: str) -> str:
    """The proxy by which ``https_proxy`` and ``no_proxy`` tell this process to reach a host; empty: none."""
    if urllib.request.proxy_bypass(host):
        return ""
    return urllib.request.getproxies().get("https", "")


def connect(federation: Federation, patience: float = _PATIENCE) -> socket.socket:
    """A TCP connection to the coordinator, through the proxy where one is set.

    Args:
        federation: with the address.
        patience: seconds.

    Raises:
        UnreachableError: with the step at which it ended, and what to do.
    """
    host, port = federation.host, federation.port
    proxy = proxy_for(host)
    if not proxy:
        return _connect(host, port, "the coordinator", patience)
    parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    if not parts.hostname or parts.scheme not in ("", "http"):
        raise UnreachableError("https_proxy is set to something that is no http://host:port; correct it")
    connection = _connect(parts.hostname, parts.port or 80, "the proxy of https_proxy", patience)
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {name} HTTP/1.1", f"Host: {name}"]
    if parts.username:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
    try:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        said = b""
        while b"\r\n\r\n" not in said and len(said) < _LONGEST_ANSWER:
            if not (more := connection.recv(1)):  # byte by byte: what follows is the coordinator's
                break
            said += more
    except OSError as error:
        connection.close()
        raise UnreachableError(f"the proxy {parts.hostname} does not answer ({error}); ask who runs it") from None
    status = said.split(b"\r\n")[0].split(b" ", 2)
    if len(status) < 2 or status[1] != b"200":
        connection.close()
        found = ascii(said.split(b"\r\n")[0][:80].decode("latin-1"))
        raise UnreachableError(
            f"the proxy {parts.hostname} does not connect to {name}: it says {found}; ask who runs it to allow it, or "
            f"set no_proxy={host} if the way is open without"
        )
    return connection


def shake_hands(connection: socket.socket, identity: Identity | None, patience: float = _PATIENCE) -> Answer:
    """Do TLS's handshake over a connection, and hear whether the other side lets this one in. Closes it.

    Args:
        connection: of :func:`connect`.
        identity: of this site; None: no certificate is shown.
        patience: seconds.

    Raises:
        UnreachableError: what answers speaks no TLS, or nobody does.
    """
    # Nothing is verified here: the caller compares the fingerprint, which is more than an authority's signature.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if identity is not None:
        context.load_cert_chain(identity.folder / CERTIFICATE, identity.folder / KEY)
    connection.settimeout(patience)
    try:
        stream = context.wrap_socket(connection)
    except OSError as error:
        connection.close()
        raise UnreachableError(
            f"what answers there does not speak TLS as a coordinator does ({_short(error)}); see that the address is "
            "the coordinator's, and that nothing on the way opens TLS"
        ) from None
    with stream:
        shown = stream.getpeercert(binary_form=True) or b""
        version, refusal = stream.version() or "", ""
        try:
            # A client of TLS 1.3 has done its part before the server has looked at its certificate. What comes
            # next is the server's first frame, or its refusal.
            if not stream.recv(1):
                refusal = "it closed the connection"
        except TimeoutError:
            refusal = "it said nothing"
        except OSError as error:
            refusal = _short(error)
    return Answer(ssl.DER_cert_to_PEM_cert(shown).encode(), version, refusal)


def _connect(host: str, port: int, whose: str, patience: float) -> socket.socket:
    try:
        return socket.create_connection((host, port), patience)
    except socket.gaierror:
        raise UnreachableError(
            f"{whose} is called {host}, and no name server here knows that; see that the name is right, and that this "
            "machine may ask a name server"
        ) from None
    except TimeoutError:
        raise UnreachableError(
            f"{whose} at {host}:{port} does not answer within {patience:.0f} s; a firewall drops it: ask for outbound "
            f"TCP to {host} port {port}, or set https_proxy"
        ) from None
    except OSError as error:
        raise UnreachableError(
            f"{whose} at {host}:{port} cannot be reached ({os.strerror(error.errno or 0)}); see that `colearn-hpc "
            "serve` runs there, and that this machine may go out to it"
        ) from None


def _short(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or str(error) or type(error).__name__
    return str(reason).replace("_", " ").lower()[:120]
