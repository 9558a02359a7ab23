"""Folder, zip and tar give the same files; hostile and damaged archives give one clear error."""

import os
import stat
import tarfile
import zipfile

import pytest
from miniatures import write_folder, write_tar, write_zip

from colearn_hpc.data.sources.base import Unreadable
from colearn_hpc.data.sources.tree import file_fingerprint, open_tree
from colearn_hpc.errors import DataError

FILES = {"b/two.txt": b"2" * 700, "a/one.txt": b"1", "a/ü.txt": b"", "three": b"333"}
JUNK = {".DS_Store": b"x", "a/._one.txt": b"x", "__MACOSX/a/one.txt": b"x"}
FORMS = ("folder", "zip", "tar", "tar.gz")


def build(tmp_path, form, files=FILES):
    if form == "folder":
        return write_folder(tmp_path / "folder", files)
    return (write_zip if form == "zip" else write_tar)(tmp_path / f"files.{form}", files)


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_hold_the_same(tmp_path, form):
    tree = open_tree(build(tmp_path, form, FILES | JUNK))
    assert tree.files() == sorted((name, len(content)) for name, content in FILES.items())
    assert dict(tree.read(list(FILES))) == FILES
    assert dict(tree.read(["three"])) == {"three": b"333"}


@pytest.mark.parametrize("form", FORMS)
def test_the_fingerprint_follows_the_content(tmp_path, form):
    one, same = (open_tree(build(tmp_path / which, form)).fingerprint() for which in "ab")
    other = open_tree(build(tmp_path / "c", form, FILES | {"three": b"4444"})).fingerprint()
    assert (one == same) or form == "tar.gz"  # gzip writes the time
    assert one != other


def test_the_fingerprint_of_a_huge_file_reads_its_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("colearn_hpc.data.sources.tree._WHOLE_HASH_BYTES", 10)
    monkeypatch.setattr("colearn_hpc.data.sources.tree._END_BYTES", 4)
    path = tmp_path / "f"
    digests = set()
    for content in (b"0123456789abcdef", b"0123456789abcdeX", b"X123456789abcdef", b"0123456789abcdef0"):
        path.write_bytes(content)
        digests.add(file_fingerprint(path))
    assert len(digests) == 4


def test_links_in_a_users_own_folder_are_followed(tmp_path):
    write_folder(tmp_path / "elsewhere", {"f": b"content"})
    folder = write_folder(tmp_path / "tree", {"a": b"1"})
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    (folder / "circle").symlink_to(folder)
    tree = open_tree(folder)
    names = [name for name, _ in tree.files()]
    assert {"a", "linked/f", "dangling"} <= set(names)
    assert isinstance(dict(tree.read(["dangling"]))["dangling"], Unreadable)


def tar_member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    return path


def encrypted(path):
    write_zip(path, {"a": b"1"})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(content))
    return path


def nameless(path):
    write_zip(path, {}, [(zipfile.ZipInfo("a"), b"")])
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 28] = 0  # the length of the name in the directory; its letter becomes the extra field
    content[at + 32] = 1  # as a comment
    path.write_bytes(bytes(content))
    return path


def misnamed(path):
    write_zip(path, {"\u00fc": b"1"})
    path.write_bytes(path.read_bytes().replace("\u00fc".encode(), b"\xc3\xd7"))
    return path


def by_method(path, method):
    """A zip whose member claims to be packed by another method."""
    write_zip(path, {"a": b"1"})
    content = bytearray(path.read_bytes())
    content[8] = content[content.index(b"PK\x01\x02") + 10] = method
    path.write_bytes(bytes(content))
    return path


def corrupt(path, at, size=20):
    content = bytearray(path.read_bytes())
    at = content.index(at) if isinstance(at, bytes) else at
    content[at : at + size] = bytes(b ^ 0xFF for b in content[at : at + size])
    path.write_bytes(bytes(content))
    return path


HOSTILE = {
    "tar ..": (lambda p: write_tar(p / "x.tar", {"../evil": b"1"}), "leads out"),
    "tar inner ..": (lambda p: write_tar(p / "x.tar", {"a/../../evil": b"1"}), "leads out"),
    "tar absolute": (lambda p: write_tar(p / "x.tar", {"/etc/evil": b"1"}), "leads out"),
    "tar absolute folder": (
        lambda p: write_tar(p / "x.tar", {}, [tar_member("/etc", tarfile.DIRTYPE)]),
        "leads out",
    ),
    "tar drive": (lambda p: write_tar(p / "x.tar", {"C:/evil": b"1"}), "leads out"),
    "tar backslashes": (lambda p: write_tar(p / "x.tar", {"..\\evil": b"1"}), "leads out"),
    "tar symlink": (lambda p: write_tar(p / "x.tar", {}, [tar_member("a", tarfile.SYMTYPE, "/etc/passwd")]), "a link"),
    "tar hard link": (lambda p: write_tar(p / "x.tar", FILES, [tar_member("a", tarfile.LNKTYPE, "three")]), "a link"),
    "tar fifo": (lambda p: write_tar(p / "x.tar", {}, [tar_member("a", tarfile.FIFOTYPE)]), "device or a pipe"),
    "tar device": (lambda p: write_tar(p / "x.tar", {}, [tar_member("a", tarfile.CHRTYPE)]), "device or a pipe"),
    "tar twice": (lambda p: write_tar(p / "x.tar", {"a": b"1"}, [tar_member("a")]), "twice"),
    "tar cut in a member": (lambda p: cut(write_tar(p / "x.tar", FILES), 900), "damaged|breaks off"),
    "tar cut in a header": (lambda p: cut(write_tar(p / "x.tar", FILES), 1900), "is damaged"),
    "tar cut between members": (lambda p: cut(write_tar(p / "x.tar", FILES), 1536), "is damaged"),
    "tar.gz cut": (lambda p: cut(write_tar(p / "x.tar.gz", FILES), 100), "damaged"),
    "tar.gz flipped": (lambda p: corrupt(write_tar(p / "x.tar.gz", FILES), 60), "damaged|neither"),
    "tar header flipped": (lambda p: corrupt(write_tar(p / "x.tar", FILES), 1536, 300), "is damaged"),
    "zip ..": (lambda p: write_zip(p / "x.zip", {"../evil": b"1"}), "leads out"),
    "zip absolute": (lambda p: write_zip(p / "x.zip", {"/etc/evil": b"1"}), "leads out"),
    "zip backslashes": (lambda p: write_zip(p / "x.zip", {"..\\evil": b"1"}), "leads out"),
    "zip symlink": (lambda p: write_zip(p / "x.zip", {}, [(zip_link("a"), b"/etc/passwd")]), "a link"),
    "zip encrypted": (lambda p: encrypted(p / "x.zip"), "encrypted"),
    "zip without a name": (lambda p: nameless(p / "x.zip"), "a member without a name"),
    "zip with a name that is no UTF-8": (lambda p: misnamed(p / "x.zip"), "is damaged|cannot be read"),
    "zip by Deflate64": (lambda p: by_method(p / "x.zip", 9), "a is packed by Deflate64, which Python cannot unpack"),
    "zip by another method": (lambda p: by_method(p / "x.zip", 98), "a is packed by method 98"),
    "zip twice": (lambda p: write_zip(p / "x.zip", {"a": b"1"}, [(zipfile.ZipInfo("a"), b"2")]), "twice"),
    "zip cut": (lambda p: cut(write_zip(p / "x.zip", FILES), 700), "neither"),
    "zip directory flipped": (lambda p: corrupt(write_zip(p / "x.zip", FILES), b"PK\x01\x02"), "damaged"),
    "zero bytes": (lambda p: cut(write_zip(p / "x.zip", FILES), 0), "neither"),
    "text": (lambda p: write_folder(p, {"x.tar": b"hello" * 300}) / "x.tar", "neither"),
    "nothing": (lambda p: p / "missing", "does not exist"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_and_damaged_archives_are_refused(tmp_path, what):
    make, message = HOSTILE[what]
    path = make(tmp_path)
    before = sorted(os.walk(tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        tree = open_tree(path)
        names = [name for name, _ in tree.files()]
        list(tree.read(names))
    assert str(path) in str(caught.value)
    assert sorted(os.walk(tmp_path)) == before


def test_a_damaged_member_of_a_zip_is_one_unreadable_file(tmp_path):
    path = write_zip(tmp_path / "x.zip", FILES)
    corrupt(path, b"2" * 100)
    content = dict(open_tree(path).read(list(FILES)))
    assert isinstance(content["b/two.txt"], Unreadable) and content["three"] == b"333"


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_unpacks_to_more_than_the_limit_is_not_read(tmp_path, form, monkeypatch):
    monkeypatch.setattr("colearn_hpc.data.sources.tree.MOST_MEMBER_BYTES", 500)
    content = dict(open_tree(build(tmp_path, form)).read(list(FILES)))
    assert content["b/two.txt"] == Unreadable(
        "b/two.txt", "has 700 bytes unpacked, more than the 500 that are read of one file"
    )
    assert content["three"] == b"333"


def test_a_zip_that_lies_about_a_size_yields_no_more_than_it_announced(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(10**7))
    content = bytearray(path.read_bytes())
    for at in (22, content.index(b"PK\x01\x02") + 24):
        content[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    ((_, found),) = open_tree(path).read(["bomb"])
    assert isinstance(found, Unreadable) and "is damaged" in found.reason
