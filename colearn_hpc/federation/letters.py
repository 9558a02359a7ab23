"""What organiser and site send each other, by any way, before there is a connection. None of it is secret.

    organiser -> site   lyon.invitation.yaml    run, site, the coordinator's address and fingerprint, the authority
    site -> organiser   lyon.request.pem        the site's public key and name, signed by that key (a PKCS #10 request)
    organiser -> site   lyon.certificate.pem    the same, signed by the authority

Somebody on the way could put another authority into the invitation, or another key into the request. So both sides
compute a *code* from all of it, and read it to each other over the telephone: the codes are equal only where nothing
was changed in either direction.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from colearn_hpc.errors import ConfigurationError, IdentityError
from colearn_hpc.federation.agreement import (
    certificate_of,
    check_fingerprint,
    check_name,
    fingerprint_of,
    split_address,
    strict_mapping,
)
from colearn_hpc.federation.identity import Named, named_in_names, uri_of

_KEYS = ("invitation_to_run", "site", "coordinator", "coordinator_fingerprint", "ca")


@dataclass(frozen=True)
class Invitation:
    """What a site is told to begin with.

    Attributes:
        run, site: names.
        coordinator: ``host:port``.
        coordinator_fingerprint: of its certificate.
        ca: certificate of the run's authority, PEM.

    Raises:
        ConfigurationError: one of them is impossible.
    """

    run: str
    site: str
    coordinator: str
    coordinator_fingerprint: str
    ca: str

    def __post_init__(self) -> None:
        check_name("run", self.run)
        check_name("site", self.site)
        split_address(self.coordinator)
        check_fingerprint("coordinator_fingerprint", self.coordinator_fingerprint)
        certificate_of(self.ca)

    @classmethod
    def parse(cls, text: str) -> Invitation:
        """What :meth:`to_yaml` wrote.

        Raises:
            ConfigurationError: it is no invitation.
        """
        content = strict_mapping("the invitation", text, _KEYS, _KEYS)
        for key in _KEYS:
            if not isinstance(content[key], str):
                raise ConfigurationError(f"{key} of the invitation must be text; ask the organiser for a new one")
        return cls(*(content[key] for key in _KEYS))

    def to_yaml(self) -> str:
        lines = [
            f"# An invitation of site {self.site} to the run {self.run}. Nothing in it is secret.",
            "# There: `colearn-hpc federation accept` with this file's name makes a key, and a request to send back.",
            f'invitation_to_run: "{self.run}"',
            f'site: "{self.site}"',
            f'coordinator: "{self.coordinator}"',
            f'coordinator_fingerprint: "{self.coordinator_fingerprint}"',
            "ca: |",
            *(f"  {line}" for line in self.ca.strip().splitlines()),
        ]
        return "\n".join(lines) + "\n"

    def code(self, key: ec.EllipticCurvePublicKey) -> str:
        """What both sides read to each other: of the invitation and the site's public key.

        Returns:
            128 bits of a SHA-256, eight groups of four hexadecimal digits. To pass for another, a key would have to
            be found that hits all of them.
        """
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        said = [self.run, self.site, self.coordinator, self.coordinator_fingerprint, fingerprint_of(self.ca)]
        digest = hashlib.sha256(b"colearn invitation\0" + json.dumps(said).encode() + b"\0" + spki).hexdigest()
        return " ".join(digest[place : place + 4] for place in range(0, 32, 4))


def same_code(one: str, other: str) -> bool:
    """Whether two people mean the same code, however they write its groups."""
    return "".join(one.split()).replace("-", "").lower() == "".join(other.split()).replace("-", "").lower()


def make_request(named: Named, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request for a certificate, PEM: name and public key, signed by the key itself."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri_of(named))])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, named.name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, False)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes, run: str) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Whose request this is, and the public key in it.

    Args:
        pem: of the file.
        run: the only one that it may be for.

    Raises:
        IdentityError: it is no request of a site of this run, or not signed by its own key.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        named = named_in_names(request.extensions)
        key = request.public_key()
        holds = request.is_signature_valid
    except ValueError as error:
        raise IdentityError(
            f"this is no request for a certificate ({str(error)[:100]}); it begins with -----BEGIN CERTIFICATE "
            "REQUEST-----, as `colearn-hpc federation accept` writes it"
        ) from None
    if named is None or named.role != "site":
        raise IdentityError(
            "the request names no site of a run; the site makes it with `colearn-hpc federation accept`"
        )
    if named.run != run:
        raise IdentityError(
            f"site {named.name} asks to take part in the run {named.run}, and this is {run}; send it an invitation to "
            "this one"
        )
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(
            f"the key of site {named.name} is not on the curve P-256; the site makes one with `colearn-hpc federation "
            "accept`"
        )
    if not holds:
        raise IdentityError(
            f"the request of site {named.name} is not signed by its own key: it was damaged or changed on the way; ask "
            "for it again"
        )
    return named.name, key
