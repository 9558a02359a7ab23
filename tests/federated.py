"""A federation on this machine: certificates made on the spot, a real coordinator in a process of its own."""

from __future__ import annotations

import datetime
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from colearn_hpc.federation.agreement import Federation, Member, fingerprint_of
from colearn_hpc.federation.link import Membership

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates, good ones and bad ones."""

    def __init__(self, run: str = "test") -> None:
        self.run, self.key = run, ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority of {run}")])
        self.certificate = (
            self._builder(name, name, self.key.public_key(), NOW - DAY, NOW + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, folder: Path, uri: str, server: bool = False, begin=NOW - DAY, end=NOW + DAY, ca=None) -> str:
        """Write an identity into a folder; returns the certificate's fingerprint."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, uri[-60:])])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
        if server:
            names += [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = (
            self._builder(name, self.certificate.subject, key.public_key(), begin, end)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "ca.pem").write_bytes(ca or self.pem)
        path = folder / "key.pem"
        path.touch(0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return fingerprint_of(certificate)

    def _builder(self, subject, issuer, public, begin, end) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Consortium:
    """Sites, a coordinator, and what they agreed on, in one folder.

    Args:
        folder: for all files.
        names: of the sites.
        settings: further settings of federation.yaml.
    """

    def __init__(self, folder: Path, names=("lyon", "kiel"), **settings) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.names, self.port = folder, tuple(names), free_port()
        self.authority = Authority()
        fingerprint = self.authority.issue(folder / "coordinator", "colearn-coordinator://test", server=True)
        found = {name: self.authority.issue(folder / name, f"colearn://test/{name}") for name in names}
        self.path = folder / "federation.yaml"
        may = settings.pop("may", {})
        self.federation = Federation(
            run="test",
            coordinator=f"localhost:{self.port}",
            coordinator_fingerprint=fingerprint,
            ca=self.authority.pem.decode(),
            sites=tuple(
                Member(name, found[name], may.get(name, ("join", "give", "see_mean", "preside"))) for name in names
            ),
            **settings,
        )
        self.path.write_text(self.federation.to_yaml())
        self.log = folder / "coordinator.log"
        self.process: subprocess.Popen | None = None

    def membership(self, name: str) -> Membership:
        return Membership.read(self.path, name)

    def serve(self, *options: str) -> None:
        """Start the coordinator, for the first time or again."""
        before = self.said().count(" serving: ")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "colearn_hpc", "serve", str(self.path), "--listen", self.listen, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, OMP_NUM_THREADS="1"),
            )
        end = time.monotonic() + 60
        while self.said().count(" serving: ") == before:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)

    @property
    def listen(self) -> str:
        return f"127.0.0.1:{self.port}"

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL, at whatever it is doing."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """End it, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def __enter__(self) -> Consortium:
        self.serve()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
