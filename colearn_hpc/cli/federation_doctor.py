"""``colearn-hpc doctor --federation``: whether this site would be let in, and if not, why.

Everything is looked at here, with the functions by which the other side looks: TLS itself gives no reason.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from colearn_hpc.cli.findings import FAIL, OK, WARN, Finding
from colearn_hpc.errors import ColearnError, ConfigurationError
from colearn_hpc.federation.agreement import Federation, certificate_of, fingerprint_of
from colearn_hpc.federation.checks import SOON, Refusal, dates, why_not_coordinator, why_not_site
from colearn_hpc.federation.identity import Identity, identity_folder
from colearn_hpc.federation.reach import UnreachableError, connect, proxy_for, shake_hands


def examine(path: Path, site: str | None, folder: Path | None = None, now: dt.datetime | None = None) -> list[Finding]:
    """All findings.

    Args:
        path: of ``federation.yaml``.
        site: whose identity is looked at; None: the coordinator's, where it lies here.
        folder: of the identity; None: beside ``federation.yaml``, under the site's name.
        now: the moment; None: this one.
    """
    now = now or dt.datetime.now(dt.UTC)
    try:
        federation = Federation.read(path)
    except ConfigurationError as error:
        return [Finding(FAIL, "agreement", str(error))]
    findings = [
        Finding(
            OK,
            "agreement",
            f"run {federation.run} of {', '.join(federation.names) or 'no site yet'}; digest {federation.digest()}, "
            "the same at every site",
        )
    ]
    against = dates(certificate_of(federation.ca), f"the authority of run {federation.run}", now)
    text = f"{fingerprint_of(federation.ca)}, until {_end(federation.ca)}"
    findings.append(Finding(FAIL, "authority", against.text) if against else Finding(OK, "authority", text))
    folder = folder or identity_folder(path, site or "coordinator")
    if site is None and not folder.exists():
        findings.append(Finding(OK, "identity", "no --site, so no certificate was looked at"))
        return findings + _connection(federation, None, now)
    identity, found = _identity(federation, folder, site, now)
    findings += found
    # The coordinator does not call itself.
    return findings if site is None else findings + _connection(federation, identity, now)


def _identity(
    federation: Federation, folder: Path, site: str | None, now: dt.datetime
) -> tuple[Identity | None, list[Finding]]:
    try:
        identity = Identity.read(folder)
    except ColearnError as error:
        return None, [Finding(FAIL, "identity", str(error))]
    findings = [Finding(OK, "identity", f"{folder}: key and certificate belong together, and only this user reads it")]
    if fingerprint_of(identity.ca) != fingerprint_of(federation.ca):
        text = (
            f"{folder}/ca.pem, which came with the invitation, is another authority than federation.yaml's; one of the "
            "two is of another run, or was changed on its way: telephone the organiser"
        )
        findings.append(Finding(FAIL, "authority", text))
    against: Sequence[Refusal] = (
        why_not_coordinator(identity.certificate, federation, now)
        if site is None
        else why_not_site(identity.certificate, federation, now, site)
    )
    findings += [Finding(FAIL, "identity", one.text) for one in against]
    if not against:
        end = certificate_of(identity.certificate).not_valid_after_utc
        text = f"{identity.name}, {identity.fingerprint}, on the roster, until {_end(identity.certificate)}"
        if end - now < SOON:
            text += "; ask the organiser for a new invitation now"
        findings.append(Finding(WARN if end - now < SOON else OK, "roster", text))
        if site is not None:
            findings.append(Finding(OK, "may", ", ".join(federation.site(site).may)))
    return identity, findings


def _connection(federation: Federation, identity: Identity | None, now: dt.datetime) -> list[Finding]:
    try:
        connection = connect(federation)
        way = " by the proxy of https_proxy" if proxy_for(federation.host) else ""
        findings = [Finding(OK, "TCP", f"{federation.coordinator} is reached{way}")]
        answer = shake_hands(connection, identity)
    except UnreachableError as error:
        return [Finding(FAIL, "TCP", str(error))]
    against = why_not_coordinator(answer.certificate, federation, now)
    findings += [Finding(FAIL, "TLS", one.text) for one in against]
    if not against:
        findings.append(Finding(OK, "TLS", f"{answer.version}, and the certificate is the coordinator's own"))
    if identity is not None and answer.refusal:
        text = (
            f"the coordinator does not take this certificate ({answer.refusal}); where nothing above fails, its clock "
            "or its federation.yaml is another: ask the organiser"
        )
        findings.append(Finding(FAIL, "TLS", text))
    return findings


def _end(certificate: str | bytes) -> str:
    return f"{certificate_of(certificate).not_valid_after_utc:%Y-%m-%d}"
