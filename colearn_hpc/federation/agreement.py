"""``federation.yaml``: what the organisations of a run have agreed on. The same file lies at every site.

    run: gut-2027
    coordinator: colearn.example.org:443
    coordinator_fingerprint: sha256:9f86d081…
    ca: ca.pem                                # relative to this file; or the PEM itself
    sites:                                    # their order is the order of the mean
      lyon: {fingerprint: "sha256:60303ae2…", may: [join, give, see_mean, preside]}
      kiel: {fingerprint: "sha256:fd61a03a…"}
      oslo: {fingerprint: "sha256:88baa902…", left: true}   # was in the run, and is not any more
    on_failure: continue_without              # stop | continue_without
    round_timeout: 6h

A certificate is known by its fingerprint, the SHA-256 of its DER form. The authority that signs certificates cannot
invent a site: a site is whose fingerprint stands here, in the copy that lies at each of the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.protocol.settings import OnFailure

Permission = Literal["join", "give", "see_mean", "preside", "stop_all"]
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
USUAL: tuple[Permission, ...] = ("join", "give", "see_mean", "preside")  # a site's, where the file says nothing
MOST_SITES = 1000
_LARGEST_FILE = 1 << 20  # bytes; a thousand sites take 120 kB
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # a name becomes a folder, and a part of a URI
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h|d)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_KEYS = ("run", "coordinator", "coordinator_fingerprint", "ca", "sites", "on_failure", "round_timeout")
_NEEDED = _KEYS[:5]
_SITE_KEYS = ("fingerprint", "may", "left")
RESERVED = ("coordinator", "authority")  # folders beside federation.yaml, as each site's own is


@dataclass(frozen=True)
class Member:
    """A site of the roster.

    Attributes:
        name: of the site.
        fingerprint: of its certificate, ``sha256:`` and 64 hexadecimal digits.
        may: what it is allowed to do, in the order of :data:`PERMISSIONS`: ``join`` the meetings, ``give`` its model
            to the mean, ``see_mean``, ``preside`` (decide when to double T and when to stop), ``stop_all``.
        left: it was in the run, and has left for good. It keeps its place in the order, and its certificate opens
            nothing.
    """

    name: str
    fingerprint: str
    may: tuple[Permission, ...] = USUAL
    left: bool = False


@dataclass(frozen=True)
class Federation:
    """A ``federation.yaml``, checked.

    Attributes:
        run: name of the run.
        coordinator: where it is reached, ``host:port``.
        coordinator_fingerprint: of its certificate.
        ca: certificate of the run's authority, PEM.
        sites: the roster, in the order of the mean.
        on_failure: what happens to a round when a site does not come.
        round_timeout: seconds to wait for a site at a round's end; None: for ever.

    Raises:
        ConfigurationError: a value is impossible, or two contradict each other.
    """

    run: str
    coordinator: str
    coordinator_fingerprint: str
    ca: str
    sites: tuple[Member, ...]
    on_failure: OnFailure = "stop"
    round_timeout: float | None = None

    def __post_init__(self) -> None:
        check_name("run", self.run)
        split_address(self.coordinator)
        check_fingerprint("coordinator_fingerprint", self.coordinator_fingerprint)
        fingerprint_of(self.ca)
        if self.on_failure not in get_args(OnFailure):
            raise ConfigurationError(
                f"on_failure must be one of {', '.join(get_args(OnFailure))}; found {self.on_failure!r}"
            )
        if self.round_timeout is not None and not 0 < self.round_timeout < math.inf:
            raise ConfigurationError(
                f"round_timeout must be a positive time such as 6h, or null for no end; found {self.round_timeout}"
            )
        if len(self.sites) > MOST_SITES:
            raise ConfigurationError(f"{len(self.sites)} sites; a federation has at most {MOST_SITES}")
        names: dict[str, str] = {}
        owners = {self.coordinator_fingerprint: "the coordinator"}
        for site in self.sites:
            check_name("site", site.name)
            check_fingerprint(f"sites: {site.name}: fingerprint", site.fingerprint)
            if (other := names.setdefault(site.name.lower(), site.name)) != site.name or site.name in owners.values():
                raise ConfigurationError(
                    f"sites {other} and {site.name} have one name; give one of them another name, not only other "
                    "capitals"
                )
            if (owner := owners.setdefault(site.fingerprint, site.name)) != site.name:
                raise ConfigurationError(
                    f"{owner} and {site.name} have one fingerprint, {site.fingerprint[:19]}…; each needs a certificate "
                    "of its own (`colearn-hpc federation accept` at the site makes the key)"
                )
            _check_permissions(site)

    @classmethod
    def read(cls, path: Path | str) -> Federation:
        """Read a ``federation.yaml``.

        Raises:
            ConfigurationError: it cannot be read, has unknown, missing or repeated keys, or an impossible value; the
                text begins with the file's name.
        """
        path = Path(path)
        try:
            return cls._parse(strict_mapping("the file", text_of(path), _KEYS, _NEEDED), path.parent)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None

    @classmethod
    def _parse(cls, settings: Mapping[str, Any], folder: Path) -> Federation:
        members = []
        sites = settings["sites"] if settings["sites"] is not None else {}
        for name, entry in _pairs("sites", sites):
            found = _mapping(f"sites: {name}", entry, _SITE_KEYS, _SITE_KEYS[:1])
            left = found.get("left", False)
            if not isinstance(left, bool):
                raise ConfigurationError(f"sites: {name}: left must be true or false; found {_shown(left)}")
            may = permissions_of(found.get("may", [] if left else list(USUAL)), f"sites: {name}: may")
            members.append(Member(name, _a_text(f"sites: {name}: fingerprint", found["fingerprint"]), may, left))
        ca = _a_text("ca", settings["ca"])
        return cls(
            run=_a_text("run", settings["run"]),
            coordinator=_a_text("coordinator", settings["coordinator"]),
            coordinator_fingerprint=_a_text("coordinator_fingerprint", settings["coordinator_fingerprint"]),
            ca=ca if "-----BEGIN" in ca else text_of(folder / ca),
            sites=tuple(members),
            on_failure=settings.get("on_failure", "stop"),
            round_timeout=seconds_of(settings.get("round_timeout")),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The sites' names, in the order of the mean."""
        return tuple(site.name for site in self.sites)

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the sites that have not left."""
        return tuple(k for k, site in enumerate(self.sites) if not site.left)

    @property
    def host(self) -> str:
        """Where the coordinator is, without the port and without an IPv6 address's brackets."""
        return split_address(self.coordinator)[0]

    @property
    def port(self) -> int:
        return split_address(self.coordinator)[1]

    def site(self, name: str) -> Member:
        """The member of that name.

        Raises:
            ConfigurationError: there is none.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise ConfigurationError(
            f"no site {name!r} in run {self.run}; its sites are {', '.join(self.names) or '(none yet)'}"
        )

    def owner_of(self, fingerprint: str) -> Member | None:
        """The member whose certificate has this fingerprint; None: a stranger, or somebody who was taken off."""
        return next((site for site in self.sites if site.fingerprint == fingerprint), None)

    def items(self) -> dict[str, str]:
        """Everything in it as readable pairs, in a fixed order; equal for two files that mean the same."""
        items = {
            "run": self.run,
            "coordinator": self.coordinator,
            "coordinator fingerprint": self.coordinator_fingerprint,
            "authority": fingerprint_of(self.ca),
            "sites": ", ".join(self.names),
        }
        for site in self.sites:
            may = "has left" if site.left else f"may {', '.join(site.may) or 'nothing'}"
            items[f"site {site.name}"] = f"{site.fingerprint} {may}"
        return items | {"on_failure": self.on_failure, "round_timeout": str(self.round_timeout)}

    def digest(self) -> str:
        """SHA-256 of :meth:`items` as canonical JSON, ``sha256:`` and 64 hexadecimal digits.

        How the file is written has no part in it: comments, quotes, a CA inside the file or beside it.
        """
        text = json.dumps(list(self.items().items()), separators=(",", ":"))
        return "sha256:" + hashlib.sha256(b"colearn federation\0" + text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The file's text, with the CA inside, so that one file is all that is handed on."""
        settings = {
            "run": self.run,
            "coordinator": self.coordinator,
            "coordinator_fingerprint": self.coordinator_fingerprint,
            "on_failure": self.on_failure,
            "round_timeout": self.round_timeout,
        }
        lines = [
            "# What the organisations of this run have agreed on: the same file at every site (docs/federation.md).",
            "# `colearn-hpc federation sign` and `remove` write it anew: comments of your own do not stay.",
            *(f"{key}: {json.dumps(value)}" for key, value in settings.items()),
            "sites:  # their order is the order of the mean" if self.sites else "sites: {}",
            *(
                f'  "{site.name}": {{fingerprint: "{site.fingerprint}", '
                + ("left: true}" if site.left else f"may: [{', '.join(site.may)}]}}")
                for site in self.sites
            ),
            "ca: |",
            *(f"  {line}" for line in self.ca.strip().splitlines()),
        ]
        return "\n".join(lines) + "\n"


def check_name(what: str, name: str) -> None:
    """Refuse what cannot be a folder and a part of a URI.

    Raises:
        ConfigurationError: with ``what`` it names.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"a {what} is named {_shown(name)}; a name becomes a folder, so use up to 64 letters, digits, '.', '_', "
            "'-', the first of them a letter or a digit"
        )
    if name.lower() in RESERVED:
        raise ConfigurationError(f"a {what} cannot be named {name}: that is the name of a folder; choose another name")


def split_address(address: str) -> tuple[str, int]:
    """Host, without the brackets of an IPv6 address, and port.

    Raises:
        ConfigurationError: it is not ``host:port``.
    """
    host, _, port = address.rpartition(":")
    if not _HOST.fullmatch(host) or not re.fullmatch(r"[1-9]\d{0,4}", port) or int(port) > 65535:
        raise ConfigurationError(
            f"coordinator must be host:port, as in colearn.example.org:443; found {_shown(address)}"
        )
    return host.strip("[]"), int(port)


def fingerprint_of(certificate: str | bytes | x509.Certificate) -> str:
    """SHA-256 of a certificate's DER form, ``sha256:`` and 64 hexadecimal digits.

    Args:
        certificate: PEM, or parsed.

    Raises:
        ConfigurationError: it is no PEM certificate.
    """
    if not isinstance(certificate, x509.Certificate):
        certificate = certificate_of(certificate)
    return "sha256:" + certificate.fingerprint(hashes.SHA256()).hex()


def certificate_of(pem: str | bytes, what: str = "ca") -> x509.Certificate:
    """The one certificate of a PEM text.

    Raises:
        ConfigurationError: there is none, several, or it is damaged; ``what`` it was to be is in the text.
    """
    data = pem.encode() if isinstance(pem, str) else pem
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigurationError(
            f"{what} holds no certificate ({str(error)[:100]}); it begins with -----BEGIN CERTIFICATE-----"
        ) from None
    if len(found) != 1:
        raise ConfigurationError(f"{what} holds {len(found)} certificates; it must be one")
    return found[0]


def seconds_of(value: Any) -> float | None:
    """A time of ``federation.yaml`` in seconds: a number, or as in 90s, 30min, 6h, 2d; None for null.

    Raises:
        ConfigurationError: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigurationError(f"round_timeout must be a time such as 90s, 30min, 6h, 2d; found {_shown(value)}")
    return float(match[1]) * _SECONDS[match[2]]


def permissions_of(value: Any, what: str = "may") -> tuple[Permission, ...]:
    """A list of permissions, in the order of :data:`PERMISSIONS`.

    Raises:
        ConfigurationError: it is no list, or names something that there is not, or twice; ``what`` is in the text.
    """
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ConfigurationError(f"{what} must be a list of {', '.join(PERMISSIONS)}; found {_shown(value)}")
    for place, one in enumerate(value):
        if one not in PERMISSIONS:
            raise ConfigurationError(f"{what} has no {_shown(one)}; there are {', '.join(PERMISSIONS)}")
        if one in value[:place]:
            raise ConfigurationError(f"{what} names {one} twice; drop one of the two")
    return tuple(one for one in PERMISSIONS if one in value)


def check_fingerprint(what: str, value: str) -> None:
    """Refuse what is no fingerprint.

    Raises:
        ConfigurationError: with ``what`` it was to be.
    """
    if not _FINGERPRINT.fullmatch(value):
        raise ConfigurationError(
            f"{what} must be sha256: and 64 hexadecimal digits in small letters; found {_shown(value)}. "
            "`colearn-hpc federation show CERTIFICATE` prints it"
        )


def _check_permissions(site: Member) -> None:
    if site.left and site.may:
        raise ConfigurationError(f"sites: {site.name} has left, so it may nothing: drop `may`, or `left`")
    if site.may and "join" not in site.may:
        raise ConfigurationError(
            f"sites: {site.name}: may {', '.join(site.may)} but not join, and who does not join can do nothing; add "
            "join, or say `may: []`"
        )


def text_of(path: Path) -> str:
    """A small text file.

    Raises:
        ConfigurationError: it cannot be read, is large, or is no UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST_FILE:
        raise ConfigurationError(f"{path} has over {_LARGEST_FILE} bytes, so it is not what it should be")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None


class _Strict(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys without a word, and here that would be another fingerprint."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if not isinstance(key, str):
                raise ConfigurationError(f"key {_shown(key)} must be text; put it into quotes")
            if key in keys[:place]:
                raise ConfigurationError(f"{_shown(key)} stands there twice; drop one of the two")
        return super().construct_mapping(node, deep)


def strict_mapping(what: str, text: str, keys: tuple[str, ...], needed: tuple[str, ...]) -> Mapping[str, Any]:
    """The settings of a YAML text.

    Args:
        what: it is, for people.
        text: YAML.
        keys: that it may have.
        needed: that it must have.

    Raises:
        ConfigurationError: it is no YAML, or has a key that is unknown, missing or there twice.
    """
    try:
        content = yaml.load(text, _Strict)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{what} is no YAML: {' '.join(str(error).split())[:200]}") from None
    return _mapping(what, content, keys, needed)


def _pairs(what: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{what} must be names with values below them; found {_shown(value)}")
    yield from value.items()


def _mapping(what: str, value: Any, keys: tuple[str, ...], needed: tuple[str, ...]) -> Mapping[str, Any]:
    found = dict(_pairs(what, value))
    for key in found:
        if key not in keys:
            raise ConfigurationError(f"{what} has no setting {_shown(key)}; there are {', '.join(keys)}")
    for key in needed:
        if key not in found:
            raise ConfigurationError(f"{what} lacks {key}")
    return found


def _a_text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{what} must be text; found {_shown(value)}. Put it into quotes")
    return value


def _shown(value: Any) -> str:
    return ascii(value)[:80]  # ascii: what a file says never steers a terminal
