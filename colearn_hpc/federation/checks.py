"""Why a certificate is refused, in words. Pure: a certificate, ``federation.yaml`` and the moment in, sentences out.

TLS refuses a wrong certificate without a reason that a person could use: gRPC's client reads "Socket closed". So each
side looks at its own certificate with the same functions by which the other side looks at it, and says what is wrong.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from colearn_hpc.errors import ConfigurationError, IdentityError
from colearn_hpc.federation.agreement import Federation, Member, certificate_of, fingerprint_of
from colearn_hpc.federation.identity import Role, named_in

SOON = dt.timedelta(days=30)  # that early a certificate's end is worth a warning: renewing takes two letters


class Reason(Enum):
    """Why somebody is not let in; the value is its text for logs."""

    NO_CERTIFICATE = "no certificate"
    DAMAGED = "damaged"
    FOREIGN_AUTHORITY = "another authority"
    AUTHORITY_DATES = "authority out of date"
    NO_NAME = "no name"
    WRONG_ROLE = "wrong role"
    WRONG_USAGE = "wrong key usage"
    WRONG_RUN = "another run"
    NOT_YET_VALID = "not yet valid"
    EXPIRED = "expired"
    WRONG_NAME = "wrong name"
    NOT_ON_ROSTER = "not on the roster"
    ANOTHER_CERTIFICATE = "another certificate than the roster's"
    MAY_NOT_JOIN = "may not join"
    LEFT = "has left"
    WRONG_COORDINATOR = "another coordinator"
    WRONG_HOST = "wrong host"


@dataclass(frozen=True)
class Refusal:
    """One reason, and what is said of it: what was found, and what to do."""

    reason: Reason
    text: str


class RefusedError(IdentityError):
    """A certificate that is not let in.

    Attributes:
        reason: the first one.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.reason = refusal.reason


def admit(pem: bytes | None, federation: Federation, now: dt.datetime, claims: str = "") -> Member:
    """Who comes with this certificate. Asked at every call: whoever is taken off the roster is out at once.

    Args:
        pem: the client's certificate, as TLS has checked it; None: it brought none.
        federation: as it stands now.
        now: the moment, with its time zone.
        claims: the site that it says it is; empty: it says nothing.

    Raises:
        RefusedError: with the first reason.
    """
    found = why_not_site(pem, federation, now, claims)
    if found:
        raise RefusedError(found[0])
    assert pem is not None, "no certificate is a reason"
    member = federation.owner_of(fingerprint_of(pem))
    assert member is not None, "not on the roster is a reason"
    return member


def why_not_site(pem: bytes | None, federation: Federation, now: dt.datetime, claims: str = "") -> list[Refusal]:
    """All reasons against a site's certificate, the most telling first; none: it is let in. Arguments as in
    :func:`admit`."""
    certificate, found = _parsed(pem)
    if certificate is None:
        return found
    found = list(_common(certificate, federation, now, "site"))
    named = named_in(certificate)
    if named is not None and named.role == "site" and named.run == federation.run:
        found += _on_roster(fingerprint_of(certificate), named.name, federation, claims)
    return found


def why_not_coordinator(pem: bytes | None, federation: Federation, now: dt.datetime) -> list[Refusal]:
    """All reasons against a coordinator's certificate, the most telling first; none: it is the run's coordinator.

    Args:
        pem: the server's certificate.
        federation: as this site has it.
        now: the moment, with its time zone.
    """
    certificate, found = _parsed(pem)
    if certificate is None:
        return found
    found = list(_common(certificate, federation, now, "coordinator"))
    if (mine := fingerprint_of(certificate)) != federation.coordinator_fingerprint:
        text = (
            f"the coordinator at {federation.coordinator} has a certificate with fingerprint {_short(mine)}, and "
            f"federation.yaml pins {_short(federation.coordinator_fingerprint)}: somebody else answers there, or it "
            "has a new certificate; ask the organiser by telephone, and take over the new federation.yaml"
        )
        found.append(Refusal(Reason.WRONG_COORDINATOR, text))
    host = federation.host
    if host.lower() not in (known := _hosts(certificate)):
        text = (
            f"the coordinator's certificate is for {', '.join(known) or 'no host'}, and federation.yaml says {host}; "
            "the organiser makes another one (`colearn-hpc federation renew --also`), or corrects the address"
        )
        found.append(Refusal(Reason.WRONG_HOST, text))
    return found


def dates(certificate: x509.Certificate, whose: str, now: dt.datetime) -> Refusal | None:
    """What a certificate's dates say against it at a moment; ``whose`` it is stands at the sentence's beginning."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        text = (
            f"{whose} is not yet valid: it begins {_date(begin)}, and the clock here says {_date(now)}; set the clock "
            "by NTP, or wait"
        )
        return Refusal(Reason.NOT_YET_VALID, text)
    if now > end:
        text = (
            f"{whose} has expired: it ended {_date(end)}, and the clock here says {_date(now)}; ask the organiser for "
            "a new invitation (`colearn-hpc federation invite`), or set the clock by NTP if it is wrong"
        )
        return Refusal(Reason.EXPIRED, text)
    return None


def _parsed(pem: bytes | None) -> tuple[x509.Certificate | None, list[Refusal]]:
    if not pem:
        text = (
            "no certificate was shown; a site needs one of this run: `colearn-hpc federation accept` with the "
            "organiser's invitation"
        )
        return None, [Refusal(Reason.NO_CERTIFICATE, text)]
    try:
        return certificate_of(pem, "what was shown"), []
    except ConfigurationError as error:
        return None, [Refusal(Reason.DAMAGED, str(error))]


def _common(certificate: x509.Certificate, federation: Federation, now: dt.datetime, role: Role) -> Iterator[Refusal]:
    """What holds of sites' and coordinators' certificates alike."""
    named = named_in(certificate)
    whose = f"the certificate of {_of(named.role, named.name)}" if named is not None else "the certificate"
    ca = certificate_of(federation.ca)
    if (against := dates(ca, f"the authority of run {federation.run}", now)) is not None:
        yield Refusal(Reason.AUTHORITY_DATES, f"{against.text}; with an authority that ended, the run needs a new one")
    if not _signed_by(certificate, ca):
        text = (
            f"{whose} was signed by another authority than that of run {federation.run} ({_short(fingerprint_of(ca))} "
            "in federation.yaml); it belongs to another run or an earlier start of this one: ask the organiser for an "
            "invitation to this one"
        )
        yield Refusal(Reason.FOREIGN_AUTHORITY, text)
    if named is None:
        text = f"{whose} names no site of a run (colearn://RUN/SITE); ask the organiser for one made for this site"
        yield Refusal(Reason.NO_NAME, text)
    elif named.role != role:
        text = (
            f"{whose} is that of a {named.role}, and a {role}'s is wanted here; every site and the coordinator use "
            "the folder that was made for them"
        )
        yield Refusal(Reason.WRONG_ROLE, text)
    elif named.run != federation.run:
        text = (
            f"{whose} is for the run {named.run}, and this is {federation.run}; use the folder of this run, or ask the "
            "organiser for an invitation"
        )
        yield Refusal(Reason.WRONG_RUN, text)
    if not _has_purpose(certificate, role):
        what = "to call a server (clientAuth)" if role == "site" else "to be a server (serverAuth)"
        text = (
            f"{whose} may not be used {what}, or may sign others; it was not made by `colearn-hpc federation`: ask the "
            "organiser for one that is"
        )
        yield Refusal(Reason.WRONG_USAGE, text)
    if (against := dates(certificate, whose, now)) is not None:
        yield against


def _on_roster(fingerprint: str, name: str, federation: Federation, claims: str) -> Iterator[Refusal]:
    if claims and claims != name:
        text = (
            f"the certificate is that of site {name}, and it came as site {claims}; use --site {name}, or the "
            f"certificate of {claims}"
        )
        yield Refusal(Reason.WRONG_NAME, text)
    member = federation.owner_of(fingerprint)
    if member is None and name in federation.names:
        text = (
            f"the certificate of site {name} has fingerprint {_short(fingerprint)}, and federation.yaml pins "
            f"{_short(federation.site(name).fingerprint)} for {name}: it was replaced by another, or is somebody "
            "else's; use the newer certificate, or ask the organiser"
        )
        yield Refusal(Reason.ANOTHER_CERTIFICATE, text)
    elif member is None:
        text = (
            f"site {name} is not on the roster of run {federation.run} ({', '.join(federation.names) or 'nobody'}): it "
            "was taken off, or has not been put on; ask the organiser for the newest federation.yaml"
        )
        yield Refusal(Reason.NOT_ON_ROSTER, text)
    elif member.name != name:
        text = (
            f"federation.yaml calls site {member.name} whose certificate says {name}; the organiser corrects the name "
            "in federation.yaml"
        )
        yield Refusal(Reason.WRONG_NAME, text)
    elif member.left:
        yield Refusal(Reason.LEFT, has_left(name, federation.run))
    elif "join" not in member.may:
        text = f"site {name} may not join (`may: []` in federation.yaml); ask the organiser"
        yield Refusal(Reason.MAY_NOT_JOIN, text)


def has_left(name: str, run: str) -> str:
    """What is said to a site that has left for good."""
    return (
        f"site {name} has left run {run} for good, and its certificate opens nothing any more; if the organisation is "
        "to take part again, the organiser invites it by another name"
    )


def _signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):  # of another issuer; with an algorithm that is none of ours
        return False
    return True


def _has_purpose(certificate: x509.Certificate, role: Role) -> bool:
    wanted = ExtendedKeyUsageOID.CLIENT_AUTH if role == "site" else ExtendedKeyUsageOID.SERVER_AUTH
    try:
        extensions = certificate.extensions
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        signs = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        return wanted in purposes and not signs and _signs_messages(extensions)
    except (x509.ExtensionNotFound, ValueError):
        return False


def _signs_messages(extensions: x509.Extensions) -> bool:
    return extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature


def _hosts(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    addresses = names.get_values_for_type(x509.IPAddress)
    return [one.lower() for one in names.get_values_for_type(x509.DNSName)] + [
        str(one) for one in addresses if isinstance(one, ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]


def _of(role: Role, name: str) -> str:
    return f"site {name}" if role == "site" else "the coordinator"


def _short(fingerprint: str) -> str:
    return f"{fingerprint[:23]}…"


def _date(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
