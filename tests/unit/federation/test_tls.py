"""Who is let in by a real gRPC server with TLS at both ends, and that `doctor` names the reason for everyone else."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest
from certificates import DAY, NOW, Consortium
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from colearn_hpc.cli import federation_doctor, main
from colearn_hpc.cli.findings import FAIL, OK
from colearn_hpc.federation.agreement import Federation
from colearn_hpc.federation.authority import Authority, new_key
from colearn_hpc.federation.checks import Reason, RefusedError, admit, why_not_coordinator, why_not_site
from colearn_hpc.federation.identity import Identity, Named, uri_of
from colearn_hpc.federation.reach import UnreachableError, connect, coordinator_certificate, shake_hands


class Server:
    """A coordinator's door: gRPC, certificates at both ends, and the roster asked at every call."""

    def __init__(self, consortium: Consortium, identity: Identity) -> None:
        self.consortium = consortium
        self._server = grpc.server(ThreadPoolExecutor(4))
        method = grpc.unary_unary_rpc_method_handler(self._answer)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("door", {"Knock": method}),))
        pairs = [(identity.key, identity.certificate)]
        self.port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pairs, identity.ca, True))
        self._server.start()

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        shown = context.auth_context().get("x509_pem_cert", [None])[0]
        try:
            federation = Federation.read(self.consortium.path)
            return admit(shown, federation, dt.datetime.now(dt.UTC), request.decode()).name.encode()
        except RefusedError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{error.reason.value}: {error}")

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return Consortium(tmp_path_factory.mktemp("consortium"), sites=("lyon", "kiel", "oslo"))


@pytest.fixture(scope="module")
def server(consortium):
    server = Server(consortium, Identity.read(consortium.folder / "coordinator"))
    consortium.write(replace(consortium.federation, coordinator=f"127.0.0.1:{server.port}"))
    yield server
    server.stop()


def knock(server: Server, identity: Identity | None, site: str = "lyon", roots: bytes | None = None) -> str:
    """The site's name, as the server sees it; or its refusal, with gRPC's code."""
    ca = (server.consortium.folder / "lyon" / "ca.pem").read_bytes() if roots is None else roots
    pair = (identity.key, identity.certificate) if identity is not None else (None, None)
    with grpc.secure_channel(f"127.0.0.1:{server.port}", grpc.ssl_channel_credentials(ca, *pair)) as channel:
        try:
            return channel.unary_unary("/door/Knock")(site.encode(), timeout=10).decode()
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"


def hand_made(consortium: Consortium, usages=(), ca=False, names=(), signs=True):
    """A certificate of the right authority with extensions that it would not write."""
    key, own = new_key(), consortium.authority
    builder = x509.CertificateBuilder().issuer_name(own.certificate.subject).subject_name(x509.Name([]))
    builder = builder.public_key(key.public_key()).serial_number(7).not_valid_before(NOW - DAY)
    builder = builder.not_valid_after(NOW + DAY).add_extension(x509.BasicConstraints(ca, None), True)
    usage = x509.KeyUsage(signs, False, False, False, False, ca, ca, False, False)
    builder = builder.add_extension(usage, True)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
    names = [x509.UniformResourceIdentifier(uri) for uri in names] or [x509.DNSName("lyon")]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), True)
    return builder.sign(own.key, hashes.SHA256()), key


LYON = Named("site", "gut", "lyon")

# What comes -> (how it is made, the reason, whether TLS itself refuses it before the roster is asked).
BAD = {
    "expired": (lambda c: c.pinned(c.identity("expired", LYON, now=NOW - 9 * DAY, days=8)), Reason.EXPIRED, True),
    "not yet valid": (
        lambda c: c.pinned(c.identity("early", LYON, now=NOW + 9 * DAY)),
        Reason.NOT_YET_VALID,
        True,
    ),
    "another authority": (
        lambda c: c.pinned(c.identity("foreign", LYON, Authority.create("gut"))),
        Reason.FOREIGN_AUTHORITY,
        True,
    ),
    "the coordinator's as a site": (
        lambda c: Identity.read(c.folder / "coordinator"),
        Reason.WRONG_ROLE,
        True,
    ),
    "taken off the roster": (
        lambda c: c.identity("bonn"),
        Reason.NOT_ON_ROSTER,
        False,
    ),
    "another key for the name": (lambda c: c.identity("twin", LYON), Reason.ANOTHER_CERTIFICATE, False),
    "another run": (lambda c: c.identity("other", Named("site", "lung", "lyon")), Reason.WRONG_RUN, False),
    "kiel as lyon": (lambda c: Identity.read(c.folder / "kiel"), Reason.WRONG_NAME, False),
    "pinned under another name": (
        lambda c: c.pinned(c.identity("rome"), "milan"),
        Reason.WRONG_NAME,
        False,
    ),
    "no client usage": (
        lambda c: c.put("usage", *hand_made(c, [ExtendedKeyUsageOID.CODE_SIGNING], names=[uri_of(LYON)])),
        Reason.WRONG_USAGE,
        True,
    ),
    "signs others": (
        lambda c: c.put("signer", *hand_made(c, [ExtendedKeyUsageOID.CLIENT_AUTH], True, [uri_of(LYON)])),
        Reason.WRONG_USAGE,
        False,
    ),
}


@pytest.fixture
def roster(consortium):
    """The roster as it was, afterwards."""
    before = consortium.federation
    yield consortium
    consortium.write(before)


@pytest.mark.parametrize("what", BAD)
def test_who_is_not_let_in(what, server, roster, monkeypatch):
    make, reason, by_tls = BAD[what]
    identity = make(roster)
    claims = "lyon" if what == "kiel as lyon" else identity.name
    said = knock(server, identity, claims)
    if by_tls:
        assert said.startswith("UNAVAILABLE"), said
    else:
        assert said.startswith(f"PERMISSION_DENIED {reason.value}: "), said
    reasons = why_not_site(identity.certificate, roster.federation, dt.datetime.now(dt.UTC), claims)
    assert reasons[0].reason is reason
    findings = federation_doctor.examine(roster.path, claims, identity.folder)
    failed = [one.text for one in findings if one.level == FAIL]
    assert failed[0] == reasons[0].text and all(len(text) > 60 for text in failed)
    assert any("does not take this certificate" in text for text in failed) == by_tls
    assert knock(server, Identity.read(roster.folder / "oslo"), "oslo") == "oslo", "the server lives"


def test_a_site_that_may_not_join(server, roster):
    sites = [replace(site, may=()) if site.name == "oslo" else site for site in roster.federation.sites]
    roster.write(replace(roster.federation, sites=tuple(sites)))
    assert knock(server, Identity.read(roster.folder / "oslo"), "oslo").startswith("PERMISSION_DENIED may not join")


def test_removal_works_at_the_next_call(server, roster, capsys):
    kiel = Identity.read(roster.folder / "kiel")
    assert knock(server, kiel, "kiel") == "kiel"
    assert main(["federation", "remove", "kiel", "--federation", str(roster.path)]) == 0
    assert knock(server, kiel, "kiel").startswith("PERMISSION_DENIED has left")


def test_no_certificate_and_no_tls(server, consortium):
    assert knock(server, None).startswith("UNAVAILABLE")
    answer = shake_hands(connect(consortium.federation), None)
    assert answer.refusal and why_not_site(None, consortium.federation, NOW)[0].reason is Reason.NO_CERTIFICATE
    with socket.create_connection(("127.0.0.1", server.port), 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP/1" not in plain.recv(100)
    assert knock(server, Identity.read(consortium.folder / "lyon")) == "lyon"


def test_all_is_well(server, consortium, capsys):
    assert main(["doctor", "--federation", str(consortium.path), "--site", "lyon"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("0 FAIL, 0 WARN\n") and "TLSv1.3, and the certificate is the coordinator's own" in said
    assert {one.level for one in federation_doctor.examine(consortium.path, None)} == {OK}


def test_ends_soon_is_a_warning(server, roster):
    identity = roster.pinned(roster.identity("soon", LYON, days=20))
    findings = federation_doctor.examine(roster.path, "lyon", identity.folder)
    assert [one.level for one in findings].count("WARN") == 1 and not any(one.level == FAIL for one in findings)


# --- the coordinator is somebody else -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "hosts", "reason"),
    [
        (Named("coordinator", "gut", "coordinator"), ("127.0.0.1",), Reason.WRONG_COORDINATOR),
        (Named("coordinator", "gut", "coordinator"), ("elsewhere.org",), Reason.WRONG_HOST),
        (LYON, ("127.0.0.1",), Reason.WRONG_ROLE),
    ],
    ids=["another key", "another host", "a site's certificate"],
)
def test_another_coordinator(named, hosts, reason, consortium, roster):
    folder = f"impostor-{reason.name}"
    impostor = consortium.identity(folder, named, hosts=hosts)
    false = Server(consortium, impostor)
    try:
        roster.write(replace(roster.federation, coordinator=f"127.0.0.1:{false.port}"))
        findings = federation_doctor.examine(roster.path, "lyon")
        reasons = [one.reason for one in why_not_coordinator(impostor.certificate, roster.federation, NOW)]
        assert reason in reasons and Reason.WRONG_COORDINATOR in reasons
        assert [one.text for one in findings if one.level == FAIL and one.topic == "TLS"]
        with pytest.raises(RefusedError, match=r"ask the organiser by telephone|is that of a site"):
            coordinator_certificate(roster.federation)
        # A client that trusts the pinned certificate alone is not deceived by the authority's other ones.
        pinned = (consortium.folder / "coordinator" / "certificate.pem").read_bytes()
        lyon = Identity.read(consortium.folder / "lyon")
        assert knock(false, lyon, roots=pinned).startswith("UNAVAILABLE")
    finally:
        false.stop()


def test_a_client_may_trust_the_pinned_certificate_alone(server, consortium):
    lyon = Identity.read(consortium.folder / "lyon")
    certificate = coordinator_certificate(consortium.federation, lyon)
    assert certificate.strip() == (consortium.folder / "coordinator" / "certificate.pem").read_bytes().strip()
    assert knock(server, lyon, roots=certificate) == "lyon"


# --- no way there -------------------------------------------------------------------------------------------


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        yield server


def at(consortium: Consortium, port: int) -> Federation:
    return replace(consortium.federation, coordinator=f"127.0.0.1:{port}")


def test_nobody_listens(consortium, listener):
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(UnreachableError, match=r"refused.*colearn-hpc serve"):
        connect(at(consortium, port))


def test_what_answers_speaks_no_tls(consortium, listener):
    def answer():
        with listener.accept()[0] as connection:
            connection.recv(10)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(UnreachableError, match="does not speak TLS"):
        shake_hands(connect(at(consortium, listener.getsockname()[1])), None)
    thread.join()


@pytest.mark.parametrize("open_", [True, False])
def test_through_a_proxy(open_, server, consortium, listener, monkeypatch):
    """``https_proxy`` as at many hospitals: the proxy is asked for the coordinator, with its password."""
    asked = []

    def proxy():
        with listener.accept()[0] as here:
            said = b""
            while b"\r\n\r\n" not in said:
                said += here.recv(1000)
            asked.append(said.decode())
            if not open_:
                here.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", server.port)) as there:
                here.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                pair = [
                    threading.Thread(target=pump, args=args, daemon=True) for args in ((here, there), (there, here))
                ]
                [one.start() for one in pair]
                [one.join(20) for one in pair]

    def pump(source, target):
        try:
            while data := source.recv(4096):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", f"http://nurse:s%40cret@127.0.0.1:{listener.getsockname()[1]}")
    thread = threading.Thread(target=proxy)
    thread.start()
    if open_:
        answer = shake_hands(connect(consortium.federation), Identity.read(consortium.folder / "lyon"))
        assert not answer.refusal and not why_not_coordinator(answer.certificate, consortium.federation, NOW)
    else:
        with pytest.raises(UnreachableError, match=r"403 Forbidden.*no_proxy=127.0.0.1") as caught:
            connect(consortium.federation)
        assert "cret" not in str(caught.value)
    thread.join()
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic bnVyc2U6c0BjcmV0\r\n" in asked[0]


def test_tls_12_is_taken_too(server, consortium):
    """gRPC has no switch for it in Python; docs/federation.md says so."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    lyon = consortium.folder / "lyon"
    context.load_cert_chain(lyon / "certificate.pem", lyon / "key.pem")
    with (
        socket.create_connection(("127.0.0.1", server.port), 10) as connection,
        context.wrap_socket(connection) as stream,
    ):
        assert stream.version() == "TLSv1.2"
