"""Who this process is: a certificate, its private key and the authority that signed it, in a folder of their own.

    lyon/certificate.pem   may be shown to anybody
    lyon/key.pem           is never shown; readable by its owner alone (0600 or 0400)
    lyon/ca.pem            the run's authority, as it came with the invitation

A site's certificate carries the name ``colearn://RUN/SITE`` as a URI. That is no DNS name, so no site's certificate can
ever pass for a server's. The coordinator's carries its DNS names or addresses, and ``colearn-coordinator://RUN``.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from colearn_hpc.errors import IdentityError
from colearn_hpc.federation.agreement import certificate_of, fingerprint_of

CERTIFICATE, KEY, CA = "certificate.pem", "key.pem", "ca.pem"
Role = Literal["site", "coordinator"]
_SITE_URI = re.compile(r"colearn://([A-Za-z0-9._-]{1,64})/([A-Za-z0-9._-]{1,64})")
_COORDINATOR_URI = re.compile(r"colearn-coordinator://([A-Za-z0-9._-]{1,64})")
_LARGEST_FILE = 1 << 16  # bytes


@dataclass(frozen=True)
class Named:
    """Whom a certificate names.

    Attributes:
        role: a site's, or the coordinator's.
        run: of which it is a part.
        name: of the site; ``coordinator`` for the coordinator.
    """

    role: Role
    run: str
    name: str


@dataclass(frozen=True)
class Identity:
    """A certificate with its key.

    Attributes:
        folder: where it was read.
        named: whom the certificate names.
        certificate: PEM.
        key: PEM; secret, and in no ``repr``.
        ca: PEM, of the authority.
        fingerprint: of the certificate, ``sha256:`` and 64 hexadecimal digits.
    """

    folder: Path
    named: Named
    certificate: bytes
    key: bytes = field(repr=False)
    ca: bytes
    fingerprint: str

    @property
    def name(self) -> str:
        """The site's name; ``coordinator`` for the coordinator."""
        return self.named.name

    @property
    def run(self) -> str:
        return self.named.run

    @classmethod
    def read(cls, folder: Path | str) -> Identity:
        """Read an identity, and check that its parts belong together.

        Dates, the authority and the roster are looked at by :mod:`colearn_hpc.federation.checks`.

        Raises:
            IdentityError: a file is missing or damaged, others may read the key, or the key is another certificate's.
        """
        folder = Path(folder)
        certificate, key, ca = (_read(folder / name) for name in (CERTIFICATE, KEY, CA))
        check_mode(folder / KEY)
        parsed = certificate_of(certificate, str(folder / CERTIFICATE))
        certificate_of(ca, str(folder / CA))
        private = private_key_of(key, folder / KEY)
        if private.public_key() != parsed.public_key():
            raise IdentityError(
                f"{folder / KEY} is not the key of {folder / CERTIFICATE}: the certificate was made for another key; "
                "put back the key that its request was made with, or ask for a new certificate "
                "(`colearn-hpc federation accept`)"
            )
        named = named_in(parsed)
        if named is None:
            raise IdentityError(
                f"{folder / CERTIFICATE} names no site and no coordinator of a run; it was not made by `colearn-hpc "
                "federation`, so ask the run's organiser for one"
            )
        return cls(folder, named, certificate, key, ca, fingerprint_of(parsed))

    def signing_key(self) -> EllipticCurvePrivateKey:
        """The private key, to sign with."""
        return private_key_of(self.key, self.folder / KEY)


def named_in(certificate: x509.Certificate) -> Named | None:
    """Whom a certificate names; None where it names nobody, or more than one."""
    try:
        return named_in_names(certificate.extensions)
    except ValueError:  # damaged
        return None


def named_in_names(extensions: x509.Extensions) -> Named | None:
    """Whom the alternative names of a certificate or a request name; None: nobody, or more than one."""
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    found: list[Named] = []
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if site := _SITE_URI.fullmatch(uri):
            found.append(Named("site", site[1], site[2]))
        elif coordinator := _COORDINATOR_URI.fullmatch(uri):
            found.append(Named("coordinator", coordinator[1], "coordinator"))
    return found[0] if len(found) == 1 else None


def identity_folder(federation: Path | str, name: str) -> Path:
    """Where an identity lies unless somebody says otherwise: beside ``federation.yaml``, under its own name.

    Args:
        federation: path of the file.
        name: of the site; ``coordinator`` for the coordinator.
    """
    return Path(federation).parent / name


def uri_of(named: Named) -> str:
    """The URI by which a certificate names somebody."""
    return f"colearn://{named.run}/{named.name}" if named.role == "site" else f"colearn-coordinator://{named.run}"


def check_mode(path: Path) -> None:
    """Refuse a key that others may read.

    Raises:
        IdentityError: with the mode, and what to do.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise IdentityError(
            f"{path} has mode {mode:04o}, so other users of this machine may use it: `chmod 600 {path}`, and if "
            "somebody may have read it, make a new one and have the old certificate taken off the roster"
        )


def private_key_of(pem: bytes, path: Path) -> EllipticCurvePrivateKey:
    """A key of a PEM text that came from ``path``.

    Raises:
        IdentityError: it is no elliptic-curve key, or has a password.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:  # TypeError: it has a password
        reason = "it has a password, which a batch job cannot type" if isinstance(error, TypeError) else "it is damaged"
        raise IdentityError(
            f"{path} holds no usable key: {reason}; make one with `colearn-hpc federation accept`"
        ) from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise IdentityError(
            f"{path} is no elliptic-curve key; make one with `colearn-hpc federation accept`, which all sites can check"
        )
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise IdentityError(
            f"{path} cannot be read: {error.strerror}; an identity is a folder with {CERTIFICATE}, {KEY} and {CA}, as "
            "`colearn-hpc federation accept` leaves it"
        ) from None
    if len(data) > _LARGEST_FILE:
        raise IdentityError(f"{path} has over {_LARGEST_FILE} bytes, so it is no certificate or key")
    return data
