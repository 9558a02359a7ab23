"""`colearn-hpc federation`: who takes part in a run over sites that share no MPI world.

organiser    federation init gut-2027 --coordinator colearn.example.org:443 ; cd gut-2027
organiser    federation invite lyon                    sends lyon.invitation.yaml
lyon         federation accept lyon.invitation.yaml    sends lyon.request.pem, and reads a code by telephone
organiser    federation sign lyon.request.pem          sends lyon.certificate.pem
lyon         federation accept lyon.certificate.pem
organiser    federation show                           sends federation.yaml to every site, when all are in it
lyon         doctor --federation federation.yaml --site lyon
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from colearn_hpc.cli.parsing import Parser
from colearn_hpc.errors import ColearnError, ConfigurationError, IdentityError
from colearn_hpc.federation.agreement import (
    PERMISSIONS,
    USUAL,
    Federation,
    Member,
    certificate_of,
    fingerprint_of,
    permissions_of,
    seconds_of,
    text_of,
)
from colearn_hpc.federation.authority import DAYS, Authority, hosts_of, new_key, pem_of, write_key
from colearn_hpc.federation.checks import has_left, why_not_site
from colearn_hpc.federation.identity import CA, CERTIFICATE, KEY, Identity, Named, named_in, private_key_of
from colearn_hpc.federation.letters import Invitation, make_request, read_request, same_code
from colearn_hpc.studies.words import printable

_INVITATION = "invitation.yaml"  # in a site's folder: its code is read to the organiser, and it must not change


def main(argv: Sequence[str]) -> int:
    """Run ``federation``; returns 0, or 2 where something was refused."""
    about = __doc__.partition("\n\n")
    parser = Parser(
        prog="colearn-hpc federation",
        description=about[0],
        epilog=f"in this order:\n\n{about[2]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Parser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(run=run)
        return one

    def of_organiser(one: argparse.ArgumentParser) -> None:
        one.add_argument("--federation", type=Path, default=Path("federation.yaml"), help="(default: %(default)s)")

    def who_signs(one: argparse.ArgumentParser) -> None:
        one.add_argument("--authority", type=Path, help="folder of the authority (default: beside federation.yaml)")

    new = command("init", _init, "begin a run: its authority, the coordinator's certificate, federation.yaml")
    new.add_argument("name", help="of the run")
    new.add_argument("--coordinator", required=True, help="where sites reach it: HOST:PORT")
    new.add_argument("--also", action="append", default=[], metavar="HOST", help="another name or address of it")
    new.add_argument("--folder", type=Path, help="a new one (default: the run's name)")
    new.add_argument("--on-failure", choices=("stop", "continue_without"), default="stop")
    new.add_argument("--round-timeout", help="time to wait for a site at a round's end: 90s, 30min, 6h, 2d")
    new.add_argument("--days", type=int, default=DAYS, help="that certificates are valid (default: %(default)s)")

    invite = command("invite", _invite, "write an invitation for a site")
    invite.add_argument("site")
    of_organiser(invite)

    accept = command("accept", _accept, "at a site: take what the organiser sent, an invitation or a certificate")
    accept.add_argument("file", type=Path)
    accept.add_argument("--folder", type=Path, help="of this site's key (default: the site's name)")

    sign = command("sign", _sign, "make a site's certificate of its request, and put the site on the roster")
    sign.add_argument("request", type=Path)
    sign.add_argument("--code", help="that the site has read by telephone; without it you are asked")
    sign.add_argument("--may", help=f"comma-separated, of {','.join(PERMISSIONS)} (default: {','.join(USUAL)})")
    sign.add_argument("--replace", action="store_true", help="the site has a certificate, and gets a new one")
    of_organiser(sign)
    who_signs(sign)

    remove = command("remove", _remove, "a site leaves for good: its certificate opens nothing any more")
    remove.add_argument("site")
    of_organiser(remove)

    renew = command("renew", _renew, "a new certificate and key for the coordinator, as for a new address")
    renew.add_argument("--coordinator", help="HOST:PORT (default: as it is)")
    renew.add_argument("--also", action="append", default=[], metavar="HOST", help="another name or address of it")
    of_organiser(renew)
    who_signs(renew)

    show = command("show", _show, "print federation.yaml, a certificate or a request in words")
    show.add_argument("file", type=Path, nargs="?", default=Path("federation.yaml"))

    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (ColearnError, OSError) as error:
        print(f"colearn-hpc: error: {printable(_text(error))}", file=sys.stderr)
        return 2
    return 0


# --- the organiser --------------------------------------------------------------------------------------


def _init(given: argparse.Namespace) -> None:
    if given.days < 1:
        raise ConfigurationError(f"--days must be at least 1; found {given.days}")
    folder = given.folder or Path(given.name)
    authority = Authority.create(given.name, given.days)
    hosts = hosts_of(given.coordinator, tuple(given.also))
    key = new_key()
    certificate = authority.certify(key.public_key(), Named("coordinator", given.name, "coordinator"), hosts)
    federation = Federation(
        run=given.name,
        coordinator=given.coordinator,
        coordinator_fingerprint=fingerprint_of(certificate),
        ca=pem_of(authority.certificate).decode(),
        sites=(),
        on_failure=given.on_failure,
        round_timeout=seconds_of(given.round_timeout),
    )
    if (folder / "federation.yaml").exists():
        raise ConfigurationError(f"{folder}/federation.yaml is there already, and is kept; choose another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    authority.write(folder / "authority")
    _write_identity(folder / "coordinator", key, pem_of(certificate), federation.ca)
    _write(folder / "federation.yaml", federation.to_yaml())
    print(
        f"{folder}/authority       signs certificates; its key never leaves this machine (a backup apart)\n"
        f"{folder}/coordinator     for `colearn-hpc serve`, on the machine that sites reach as {given.coordinator}\n"
        f"{folder}/federation.yaml for everybody, when all sites are in it\n"
        f"next: cd {folder} && colearn-hpc federation invite SITE"
    )


def _invite(given: argparse.Namespace) -> None:
    federation = Federation.read(given.federation)
    invitation = Invitation(
        federation.run, given.site, federation.coordinator, federation.coordinator_fingerprint, federation.ca
    )
    path = given.federation.parent / f"{given.site}.invitation.yaml"
    _write(path, invitation.to_yaml())
    print(
        f"{path}: send it to {given.site}; nothing in it is secret\n"
        f"next, there: colearn-hpc federation accept {path.name}, which makes a request to send back"
    )


def _sign(given: argparse.Namespace) -> None:
    federation = Federation.read(given.federation)
    folder = given.federation.parent
    may = USUAL if given.may is None else permissions_of([one for one in given.may.split(",") if one], "--may")
    name, key = read_request(_bytes_of(given.request), federation.run)
    before = next((site for site in federation.sites if site.name == name), None)
    if before is not None and before.left:
        raise IdentityError(f"{has_left(name, federation.run)} (`colearn-hpc federation invite OTHER-NAME`)")
    if before is not None and not given.replace:
        raise IdentityError(
            f"site {name} is on the roster with another certificate; if it is the same organisation with a new key, "
            "say --replace, and the old certificate opens nothing any more; otherwise invite it by another name"
        )
    invitation = Invitation(
        federation.run, name, federation.coordinator, federation.coordinator_fingerprint, federation.ca
    )
    _agree_on_code(name, invitation.code(key), given.code)
    authority = Authority.read(given.authority or folder / "authority")
    if fingerprint_of(authority.certificate) != fingerprint_of(federation.ca):
        raise IdentityError(
            f"the authority in {given.authority or folder / 'authority'} is not that of {given.federation}; every run "
            "has its own: use the one that `federation init` made with this file"
        )
    certificate = authority.certify(key, Named("site", federation.run, name))
    if before is not None and given.may is None:
        may = before.may
    member = Member(name, fingerprint_of(certificate), may)
    sites = [member if site.name == name else site for site in federation.sites]
    federation = replace(federation, sites=tuple(sites if before is not None else [*sites, member]))
    if against := why_not_site(pem_of(certificate), federation, dt.datetime.now(dt.UTC)):
        raise IdentityError(f"the certificate would not be let in: {against[0].text}")
    _write(folder / f"{name}.certificate.pem", pem_of(certificate).decode())
    _write(given.federation, federation.to_yaml())
    print(
        f"{folder / f'{name}.certificate.pem'}: send it to {name}, for `colearn-hpc federation accept`\n"
        f"{given.federation} has {name} on the roster now ({_listed(federation)}), digest {federation.digest()}\n"
        "next: when all sites are in it, send it to every site and to the coordinator; in a run that is under way the "
        "site takes part from the next round on, when all have confirmed it by starting again with this file"
    )


def _remove(given: argparse.Namespace) -> None:
    federation = Federation.read(given.federation)
    if federation.site(given.site).left:
        raise ConfigurationError(f"{given.site} has left already; nothing is changed")
    sites = [replace(one, may=(), left=True) if one.name == given.site else one for one in federation.sites]
    federation = replace(federation, sites=tuple(sites))
    _write(given.federation, federation.to_yaml())
    print(
        f"{given.site} has left ({_listed(federation)} stay), digest {federation.digest()}\n"
        "next: put this federation.yaml in the coordinator's place: from then on it lets nobody in with that "
        "certificate; then send it to every site that stays: each confirms it by starting again with it"
    )


def _renew(given: argparse.Namespace) -> None:
    federation = Federation.read(given.federation)
    folder = given.federation.parent
    authority = Authority.read(given.authority or folder / "authority")
    if (folder / "coordinator").exists():
        raise IdentityError(
            f"{folder / 'coordinator'} is there already, and is kept; move it away for the coordinator to get a new key"
        )
    address = given.coordinator or federation.coordinator
    key = new_key()
    named = Named("coordinator", federation.run, "coordinator")
    certificate = authority.certify(key.public_key(), named, hosts_of(address, tuple(given.also)))
    federation = replace(federation, coordinator=address, coordinator_fingerprint=fingerprint_of(certificate))
    _write_identity(folder / "coordinator", key, pem_of(certificate), federation.ca)
    _write(given.federation, federation.to_yaml())
    print(
        f"{folder / 'coordinator'} has a new key and certificate; digest {federation.digest()}\n"
        "next: send federation.yaml to every site, and start the coordinator with it"
    )


def _show(given: argparse.Namespace) -> None:
    text = text_of(given.file)
    if "-----BEGIN CERTIFICATE REQUEST" in text:
        raise ConfigurationError(
            f"{given.file} is a request; `colearn-hpc federation sign {given.file}` shows its code"
        )
    if text.lstrip().startswith("-----BEGIN"):
        certificate = certificate_of(text, str(given.file))
        named = named_in(certificate)
        print(
            f"{fingerprint_of(certificate)}\n"
            f"{f'{named.role} {named.name} of run {named.run}' if named else 'no site, no coordinator'}\n"
            f"valid {certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        )
        return
    federation = Federation.read(given.file)
    for what, value in (federation.items() | {"digest": federation.digest()}).items():
        print(f"{what:24} {value}")


def _agree_on_code(name: str, code: str, heard: str | None) -> None:
    """The one moment in which a person says who is who."""
    if heard is None:
        if not sys.stdin.isatty():
            raise IdentityError(
                f"nobody is here to compare codes; telephone site {name}, and say --code with what it reads from the "
                "output of `federation accept`"
            )
        print(f"Telephone site {name}, by a number that did not come with the request. It reads a code:\n\n  {code}\n")
        if input("Is it the same? (yes/no) ").strip().lower() != "yes":
            raise IdentityError(
                f"the codes differ, so {name}'s request was not signed; it may have been changed on its way: let "
                f"{name} send it again"
            )
    elif not same_code(heard, code):
        raise IdentityError(
            f"the code of this request is {code}, and site {name} has read {heard}: the invitation or the request was "
            "changed on its way, or belongs to another invitation; send both again by another way"
        )


# --- a site ---------------------------------------------------------------------------------------------


def _accept(given: argparse.Namespace) -> None:
    text = text_of(given.file)
    (_accept_certificate if text.lstrip().startswith("-----BEGIN") else _accept_invitation)(given, text)


def _accept_invitation(given: argparse.Namespace, text: str) -> None:
    try:
        invitation = Invitation.parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{given.file}: {error}") from None
    folder = given.folder or Path(invitation.site)
    named = Named("site", invitation.run, invitation.site)
    if (folder / KEY).exists():
        # The same invitation again, as for a letter that was lost: the same key, and the same code.
        if not (folder / _INVITATION).exists() or Invitation.parse(text_of(folder / _INVITATION)) != invitation:
            raise IdentityError(
                f"{folder / KEY} was made for another invitation, and is kept; say --folder for a new one, or move it "
                "away"
            )
        key = private_key_of((folder / KEY).read_bytes(), folder / KEY)
    else:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = new_key()
        _write(folder / _INVITATION, invitation.to_yaml())
        _write(folder / CA, invitation.ca)
        write_key(folder / KEY, key)
    request = folder.parent / f"{invitation.site}.request.pem"
    _write(request, make_request(named, key).decode())
    print(
        f"{folder / KEY}: this site's private key; it never leaves this site, and nobody asks for it\n"
        f"{request}: send it to the organiser; nothing in it is secret\n"
        f"then read this code to the organiser by telephone:\n\n  {invitation.code(key.public_key())}\n\n"
        f"next, when the certificate comes: colearn-hpc federation accept {invitation.site}.certificate.pem"
    )


def _accept_certificate(given: argparse.Namespace, text: str) -> None:
    certificate = certificate_of(text, str(given.file))
    named = named_in(certificate)
    if named is None or named.role != "site":
        raise IdentityError(f"{given.file} names no site of a run; ask the organiser for {given.file.name} again")
    folder = given.folder or Path(named.name)
    if not (folder / KEY).exists():
        raise IdentityError(
            f"{folder / KEY} is not there, and the certificate is of no use without its key; say --folder if it is "
            "elsewhere, or begin with the invitation"
        )
    key = private_key_of((folder / KEY).read_bytes(), folder / KEY)
    if key.public_key() != certificate.public_key():
        raise IdentityError(
            f"{given.file} was made for another key than {folder / KEY}; ask the organiser to sign this site's last "
            "request"
        )
    # A roster of this site alone: whether it is on the true one stands in federation.yaml, which comes later.
    invitation = Invitation.parse(text_of(folder / _INVITATION))
    alone = Federation(
        invitation.run,
        invitation.coordinator,
        invitation.coordinator_fingerprint,
        invitation.ca,
        (Member(invitation.site, fingerprint_of(certificate)),),
    )
    if against := why_not_site(text.encode(), alone, dt.datetime.now(dt.UTC), invitation.site):
        raise IdentityError(f"{given.file}: {against[0].text}")
    _write(folder / CERTIFICATE, text)
    identity = Identity.read(folder)
    print(
        f"{folder}: this is site {identity.name} of run {identity.run}, {identity.fingerprint}, until "
        f"{certificate.not_valid_after_utc:%Y-%m-%d}\n"
        f"next, with the organiser's federation.yaml beside it: colearn-hpc doctor --federation federation.yaml --site "
        f"{identity.name}"
    )


# --- files ----------------------------------------------------------------------------------------------


def _write_identity(folder: Path, key: EllipticCurvePrivateKey, certificate: bytes, ca: str) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_key(folder / KEY, key)
    (folder / CERTIFICATE).write_bytes(certificate)
    (folder / CA).write_text(ca)


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a coordinator may be reading its roster."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _bytes_of(path: Path) -> bytes:
    return text_of(path).encode()


def _listed(federation: Federation) -> str:
    return ", ".join(federation.names[k] for k in federation.active) or "nobody"


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, ColearnError):
        return f"{error.filename}: {error.strerror}"
    return str(error)
