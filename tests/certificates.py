"""A run's authority, coordinator and sites, made on the spot: good ones, and any bad one that a test asks for."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509

from colearn_hpc.federation.agreement import Federation, Member, fingerprint_of
from colearn_hpc.federation.authority import Authority, hosts_of, new_key, pem_of, write_key
from colearn_hpc.federation.identity import CA, CERTIFICATE, KEY, Identity, Named

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


class Consortium:
    """``federation.yaml`` and an identity folder for everybody, in a folder.

    Attributes:
        path: of ``federation.yaml``.
        authority: that signs.
        federation: what is in the file.
    """

    def __init__(self, folder: Path, sites=("lyon", "kiel", "oslo"), run="gut", coordinator="127.0.0.1:1", **settings):
        self.folder, self.path, self.run = folder, folder / "federation.yaml", run
        self.authority = Authority.create(run)
        self.hosts = tuple({*hosts_of(coordinator), "localhost", "127.0.0.1"})
        server = self.identity("coordinator", Named("coordinator", run, "coordinator"), hosts=self.hosts)
        members = tuple(Member(site, self.identity(site).fingerprint) for site in sites)
        ca = pem_of(self.authority.certificate).decode()
        self.write(Federation(run, coordinator, server.fingerprint, ca, members, **settings))

    def write(self, federation: Federation) -> None:
        self.federation = federation
        self.path.write_text(federation.to_yaml())

    def identity(self, folder: str, named: Named | None = None, authority=None, hosts=(), **dates) -> Identity:
        """A new key and certificate in a folder of this name, by default a site's; ``dates``: days, now."""
        named, key = named or Named("site", self.run, folder), new_key()
        certificate = (authority or self.authority).certify(key.public_key(), named, hosts, **dates)
        return self.put(folder, certificate, key)

    def put(self, folder: str, certificate: x509.Certificate, key) -> Identity:
        path = self.folder / folder
        path.mkdir()
        write_key(path / KEY, key)
        (path / CERTIFICATE).write_bytes(pem_of(certificate))
        (path / CA).write_bytes(pem_of(self.authority.certificate))
        return Identity.read(path)

    def pinned(self, identity: Identity, name: str = "") -> Identity:
        """Put an identity on the roster, by its own name or another."""
        from dataclasses import replace

        name = name or identity.name
        kept = tuple(site for site in self.federation.sites if site.name != name)
        self.write(replace(self.federation, sites=(*kept, Member(name, fingerprint_of(identity.certificate)))))
        return identity
