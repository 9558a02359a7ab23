"""The run's certificate authority: it says which key belongs to which name, for one run and for nothing else.

A site makes its own key and sends a request (``letters.py``); the authority signs it. No private key travels. A
certificate alone lets nobody in: its fingerprint must stand in ``federation.yaml``, which lies at every site.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from colearn_hpc.errors import IdentityError
from colearn_hpc.federation.agreement import certificate_of, check_name, split_address
from colearn_hpc.federation.identity import CERTIFICATE, KEY, Named, check_mode, private_key_of, uri_of

DAYS = 1096  # of a run's certificates, where nothing is said: three years
_EARLY = dt.timedelta(days=1)  # a site whose clock is late would otherwise refuse a certificate of today
_PURPOSES = {"site": ExtendedKeyUsageOID.CLIENT_AUTH, "coordinator": ExtendedKeyUsageOID.SERVER_AUTH}


@dataclass(frozen=True)
class Authority:
    """A certificate that signs, and its key.

    Attributes:
        certificate: self-signed.
        key: secret.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, run: str, days: int = DAYS, now: dt.datetime | None = None) -> Authority:
        """A new authority for a run.

        Args:
            run: its name.
            days: that it and all it signs are valid.
            now: the moment; None: this one.
        """
        check_name("run", run)
        key, now = new_key(), now or dt.datetime.now(dt.UTC)
        name = _subject(f"{run} authority")
        builder = _builder(name, name, key.public_key(), now, now + dt.timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(True, 0), True)
        builder = builder.add_extension(_usage(signs_certificates=True), True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def read(cls, folder: Path) -> Authority:
        """What :meth:`write` left.

        Raises:
            IdentityError: it is not there, is damaged, or others may read its key.
        """
        try:
            certificate, key = (folder / CERTIFICATE).read_bytes(), (folder / KEY).read_bytes()
        except OSError as error:
            raise IdentityError(
                f"the run's authority cannot be read ({folder}: {error.strerror}); only who has its key can sign: run "
                "this where `colearn-hpc federation init` was run, or say --authority FOLDER"
            ) from None
        check_mode(folder / KEY)
        return cls(certificate_of(certificate, str(folder / CERTIFICATE)), private_key_of(key, folder / KEY))

    def write(self, folder: Path) -> None:
        """Put certificate and key into a new folder that only its owner may enter."""
        folder.mkdir(mode=0o700, parents=True)
        write_key(folder / KEY, self.key)
        (folder / CERTIFICATE).write_bytes(pem_of(self.certificate))

    def certify(
        self,
        key: ec.EllipticCurvePublicKey,
        named: Named,
        hosts: tuple[str, ...] = (),
        days: int | None = None,
        now: dt.datetime | None = None,
    ) -> x509.Certificate:
        """Say that a key belongs to a name.

        Args:
            key: public.
            named: whose it is.
            hosts: names and addresses under which a coordinator is reached.
            days: that this is valid; None, and at most: as long as the authority itself.
            now: the moment; None: this one.
        """
        now = now or dt.datetime.now(dt.UTC)
        end = self.certificate.not_valid_after_utc
        end = end if days is None else min(end, now + dt.timedelta(days=days))
        builder = _builder(self.certificate.subject, _subject(named.name), key, now, end)
        builder = builder.add_extension(x509.BasicConstraints(False, None), True)
        builder = builder.add_extension(_usage(signs_certificates=False), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([_purpose(named)]), False)
        names = [x509.UniformResourceIdentifier(uri_of(named)), *map(_host, hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return builder.add_extension(own, False).sign(self.key, hashes.SHA256())


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key on P-256, which every TLS library has, and by which masks' keys are signed too."""
    return ec.generate_private_key(ec.SECP256R1())


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a key that no other user can read, not even for a moment.

    Raises:
        IdentityError: the file is there already: a key is never replaced in silence.
    """
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
    except FileExistsError:
        raise IdentityError(f"{path} is there already, and is kept; move it away to make a new key") from None


def pem_of(certificate: x509.Certificate) -> bytes:
    """As a PEM file holds it."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def hosts_of(coordinator: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names and addresses for the coordinator's certificate: of its address, and others of the same machine.

    Raises:
        ConfigurationError: ``coordinator`` is not ``host:port``.
    """
    return tuple(dict.fromkeys([split_address(coordinator)[0], *(one.strip("[]") for one in more)]))


def _purpose(named: Named) -> ObjectIdentifier:
    return _PURPOSES[named.role]


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])  # 64 is X.509's limit; nobody reads it


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, end: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
