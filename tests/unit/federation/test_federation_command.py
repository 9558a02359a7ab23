"""From two empty machines to a site that is let in, by the commands alone; and what goes wrong on the way."""

import datetime as dt
import re
import shutil
import stat

import pytest
from certificates import Consortium
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from colearn_hpc.cli import main
from colearn_hpc.errors import IdentityError
from colearn_hpc.federation.agreement import Federation, fingerprint_of
from colearn_hpc.federation.authority import new_key
from colearn_hpc.federation.checks import why_not_coordinator, why_not_site
from colearn_hpc.federation.identity import Identity, Named
from colearn_hpc.federation.letters import make_request, read_request

NOW = dt.datetime.now(dt.UTC)


class People:
    """An organiser's and a site's machine, and what their commands said."""

    def __init__(self, folder, monkeypatch, capsys):
        self.organiser, self.site = folder / "organiser", folder / "site"
        self.organiser.mkdir()
        self.site.mkdir()
        self._patch, self._capsys = monkeypatch, capsys

    def at(self, place, *arguments, code=0):
        self._patch.chdir(place)
        found = main(["federation", *map(str, arguments)])
        said = self._capsys.readouterr()
        assert found == code, said.out + said.err
        assert "Traceback" not in said.err
        return said.out + said.err

    def begin(self):
        self.at(self.organiser, "init", "gut", "--coordinator", "127.0.0.1:7443", "--round-timeout", "6h")
        self.run = self.organiser / "gut"
        self.at(self.run, "invite", "lyon")

    def accept(self):
        """The code that lyon reads."""
        shutil.copy(self.run / "lyon.invitation.yaml", self.site)
        said = self.at(self.site, "accept", "lyon.invitation.yaml")
        shutil.copy(self.site / "lyon.request.pem", self.run)
        return re.search(r"^  ((?:[0-9a-f]{4} ?){8})$", said, re.M)[1].strip()


@pytest.fixture
def people(tmp_path, monkeypatch, capsys):
    people = People(tmp_path, monkeypatch, capsys)
    people.begin()
    return people


def test_a_site_is_let_in(people):
    code = people.accept()
    people.at(people.run, "sign", "lyon.request.pem", "--code", code.upper().replace(" ", "-"))
    shutil.copy(people.run / "lyon.certificate.pem", people.site)
    assert "site lyon of run gut" in people.at(people.site, "accept", "lyon.certificate.pem")
    federation, lyon = Federation.read(people.run / "federation.yaml"), Identity.read(people.site / "lyon")
    assert federation.names == ("lyon",) and federation.round_timeout == 21600
    assert why_not_site(lyon.certificate, federation, NOW, "lyon") == []
    coordinator = Identity.read(people.run / "coordinator")
    assert why_not_coordinator(coordinator.certificate, federation, NOW) == []
    assert federation.digest() in people.at(people.run, "show")
    # No private key has left its machine, and others may read none.
    keys = [*people.organiser.rglob("key.pem"), *people.site.rglob("key.pem")]
    assert len(keys) == 3 and {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    secret = [path for path in people.organiser.rglob("*") if path.is_file() and b"PRIVATE" in path.read_bytes()]
    assert {path.parent.name for path in secret} == {"authority", "coordinator"}


def test_the_code_is_compared(people, monkeypatch):
    code = people.accept()
    assert "nobody is here to compare codes" in people.at(people.run, "sign", "lyon.request.pem", code=2)
    assert "was changed on its way" in people.at(people.run, "sign", "lyon.request.pem", "--code", "dead", code=2)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, result in (("no", 2), ("", 2), ("yes", 0)):
        monkeypatch.setattr("builtins.input", lambda text, answer=answer: answer)
        assert code in people.at(people.run, "sign", "lyon.request.pem", code=result)
    assert Federation.read(people.run / "federation.yaml").names == ("lyon",)


def test_a_changed_letter_changes_the_code(people, tmp_path):
    """An impostor between the two puts its own authority into the invitation, or its own key into the request."""
    (tmp_path / "impostor").mkdir()
    impostor = Consortium(tmp_path / "impostor")
    letter = people.run / "lyon.invitation.yaml"
    true = letter.read_text()
    false = (
        true[: true.index("ca: |")] + "ca: |\n" + "".join(f"  {one}\n" for one in impostor.federation.ca.splitlines())
    )
    letter.write_text(false)
    code = people.accept()
    assert "was changed on its way" in people.at(people.run, "sign", "lyon.request.pem", "--code", code, code=2)
    letter.write_text(true)
    shutil.rmtree(people.site / "lyon")
    code = people.accept()
    (people.run / "lyon.request.pem").write_bytes(make_request(Named("site", "gut", "lyon"), new_key()))
    assert "was changed on its way" in people.at(people.run, "sign", "lyon.request.pem", "--code", code, code=2)


def test_again(people):
    """A lost letter is sent again with the same key; a new key takes the place of the old one only where told so."""
    code = people.accept()
    assert people.accept() == code
    people.at(people.run, "sign", "lyon.request.pem", "--code", code, "--may", "join,give")
    first = Federation.read(people.run / "federation.yaml").site("lyon")
    people.at(people.run, "invite", "kiel")
    assert "is on the roster" in people.at(people.run, "sign", "lyon.request.pem", "--code", code, code=2)
    (people.site / "lyon").rename(people.site / "before")
    code = people.accept()
    people.at(people.run, "sign", "lyon.request.pem", "--code", code, "--replace")
    second = Federation.read(people.run / "federation.yaml").site("lyon")
    assert second.fingerprint != first.fingerprint and second.may == first.may == ("join", "give")
    people.at(people.run, "remove", "lyon")
    gone = Federation.read(people.run / "federation.yaml")
    assert gone.names == ("lyon",) and gone.active == () and gone.site("lyon").may == ()  # it keeps its place
    assert "has left already" in people.at(people.run, "remove", "lyon", code=2)
    assert "no site 'kiel'" in people.at(people.run, "remove", "kiel", code=2)
    said = people.at(people.run, "sign", "lyon.request.pem", "--code", code, "--replace", code=2)
    assert "has left run gut for good" in said and "by another name" in said


def test_what_accept_refuses(people):
    code = people.accept()
    people.at(people.run, "sign", "lyon.request.pem", "--code", code)
    shutil.copy(people.run / "lyon.certificate.pem", people.site)
    (people.site / "lyon").rename(people.site / "elsewhere")
    assert "of no use without its key" in people.at(people.site, "accept", "lyon.certificate.pem", code=2)
    people.at(people.site, "accept", "lyon.certificate.pem", "--folder", "elsewhere")
    people.accept()
    assert "for another key" in people.at(people.site, "accept", "lyon.certificate.pem", code=2)
    people.at(people.organiser, "init", "other", "--coordinator", "127.0.0.1:7444")
    people.at(people.organiser / "other", "invite", "lyon")
    other = people.organiser / "other" / "lyon.invitation.yaml"
    assert "was made for another invitation" in people.at(people.site, "accept", other, code=2)
    assert "names no site" in people.at(people.site, "accept", people.run / "coordinator" / "certificate.pem", code=2)
    assert "no certificate" in people.at(people.site, "accept", people.site / "elsewhere" / "key.pem", code=2)


def test_the_coordinator_moves(people):
    before = Federation.read(people.run / "federation.yaml")
    assert "is kept; move it away" in people.at(people.run, "renew", "--coordinator", "127.0.0.1:8443", code=2)
    (people.run / "coordinator").rename(people.run / "old")
    (people.run / "authority").rename(people.site / "safe")
    assert "only who has its key can sign" in people.at(people.run, "renew", code=2)
    people.at(
        people.run, "renew", "--coordinator", "[::1]:8443", "--also", "localhost", "--authority", people.site / "safe"
    )
    now = Federation.read(people.run / "federation.yaml")
    assert now.coordinator_fingerprint != before.coordinator_fingerprint and now.host == "::1"
    assert why_not_coordinator(Identity.read(people.run / "coordinator").certificate, now, NOW) == []


def test_init_keeps_what_is_there(people):
    said = people.at(people.organiser, "init", "gut", "--coordinator", "127.0.0.1:7443", code=2)
    assert "is there already, and is kept" in said
    assert "host:port" in people.at(people.organiser, "init", "b", "--coordinator", "nowhere", code=2)
    assert "a name becomes a folder" in people.at(people.organiser, "init", "a/b", "--coordinator", "h:1", code=2)
    assert not (people.organiser / "b").exists() and not (people.organiser / "a").exists()


def test_requests_that_are_none(people):
    for made, said in (
        (make_request(Named("site", "lung", "lyon"), new_key()), "asks to take part in the run lung"),
        (make_request(Named("coordinator", "gut", "coordinator"), new_key()), "names no site"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "no request"),
        (b"hello", "no request"),
    ):
        with pytest.raises(IdentityError, match=said):
            read_request(made, "gut")
    der = bytearray(
        x509.load_pem_x509_csr(make_request(Named("site", "gut", "lyon"), new_key())).public_bytes(Encoding.DER)
    )
    der[-1] ^= 1
    with pytest.raises(IdentityError, match="not signed by its own key"):
        read_request(x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM), "gut")


def test_an_identity_whose_parts_do_not_fit(tmp_path):
    consortium = Consortium(tmp_path)
    lyon, kiel = tmp_path / "lyon", tmp_path / "kiel"
    assert Identity.read(lyon).name == "lyon" and "PRIVATE" not in repr(Identity.read(lyon))
    assert Identity.read(lyon).fingerprint == fingerprint_of((lyon / "certificate.pem").read_bytes())
    (lyon / "key.pem").chmod(0o640)
    with pytest.raises(IdentityError, match=r"mode 0640.*chmod 600"):
        Identity.read(lyon)
    (lyon / "key.pem").chmod(0o400)
    assert Identity.read(lyon).run == consortium.run
    shutil.copy(kiel / "certificate.pem", lyon)
    with pytest.raises(IdentityError, match="is not the key of"):
        Identity.read(lyon)
    (kiel / "key.pem").write_text("nothing")
    with pytest.raises(IdentityError, match="no usable key: it is damaged"):
        Identity.read(kiel)
    (kiel / "ca.pem").unlink()
    with pytest.raises(IdentityError, match=r"ca\.pem cannot be read"):
        Identity.read(kiel)
