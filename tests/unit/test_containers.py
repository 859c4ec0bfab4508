"""Container images as roots: layouts and archives as skopeo writes them, layers, whiteouts, damage."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from vmdebug import cache, process, roots
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError
from vmdebug.guest import Root
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.roots import Making, container, layers, oci

PROCESS = {
    "Env": ["PATH=/opt/bin:/bin", "A=b"],
    "WorkingDir": "/app",
    "User": "app",
    "Entrypoint": ["/bin/app"],
    "Cmd": ["serve", "two words"],
}


def soon() -> Deadline:
    return Deadline.after(60)


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def resolve(root: str | Path, *, dry_run: bool = False, **options: Any) -> Root:
    making = Making(lambda name: name != "VIRTIO_FS", "x86_64", silent, soon(), dry_run)
    found = roots.resolve(GuestOptions(root=str(root), **options), making)
    assert found is not None
    return found


def entry(name: str, data: bytes | None = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return a file of a layer; a directory if `data` is None."""
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    member.mode = 0o755 if data is None else 0o644
    member.size = len(data or b"")
    for key, value in fields.items():
        setattr(member, key, value)
    return member, data or b""


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, data in entries:
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


class Merged(dict[str, tarfile.TarInfo]):
    """The members of the merged archive by name, and what the regular files contain."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        members = archive.getmembers()
        super().__init__({member.name.removeprefix("./"): member for member in members})
        streams = {name: archive.extractfile(member) for name, member in self.items() if member.isfile()}
        self.text = {name: stream.read() for name, stream in streams.items() if stream is not None}


def merged(tmp_path: Path, *several: bytes) -> Merged:
    files = []
    for number, data in enumerate(several):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(data)
    layers.merge(files, tmp_path / "merged.tar")
    with tarfile.open(tmp_path / "merged.tar") as archive:
        return Merged(archive)


class TestLayers:
    def test_an_upper_layer_replaces_adds_and_removes(self, tmp_path: Path) -> None:
        below = layer(entry("etc", None), entry("etc/a", b"1"), entry("etc/b", b"1"), entry("etc/c", b"1"))
        above = layer(entry("etc/a", b"2"), entry("etc/.wh.b"), entry("etc/d", b"2"))
        found = merged(tmp_path, below, above)
        assert set(found) == {"etc", "etc/a", "etc/c", "etc/d"}
        assert found.text["etc/a"] == b"2"

    def test_an_opaque_directory_hides_the_layers_below_and_not_its_own(self, tmp_path: Path) -> None:
        below = layer(entry("d", None), entry("d/sub", None), entry("d/sub/old", b"1"), entry("d/old", b"1"))
        # The whiteout can come after what it does not hide.
        above = layer(entry("d/new", b"2"), entry("d/.wh..wh..opq"))
        assert set(merged(tmp_path, below, above)) == {"d", "d/new"}

    def test_a_file_that_replaces_a_directory_and_the_reverse(self, tmp_path: Path) -> None:
        below = layer(entry("a", None), entry("a/below", b"1"), entry("b", b"1"))
        above = layer(entry("a", b"2"), entry("b", None), entry("b/c", b"2"))
        found = merged(tmp_path, below, above)
        assert set(found) == {"a", "b", "b/c"}
        assert found["a"].isreg()
        assert found["b"].isdir()

    def test_owners_modes_times_devices_and_capabilities(self, tmp_path: Path) -> None:
        capability = {"SCHILY.xattr.security.capability": "\x01\x02"}
        files = (
            entry("su", b"x", uid=10, gid=20, mode=0o4755, mtime=1700000000, pax_headers=capability),
            entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            entry("pipe", type=tarfile.FIFOTYPE),
        )
        found = merged(tmp_path, layer(*files))
        member = found["su"]
        assert (member.uid, member.gid, member.mode, member.mtime) == (10, 20, 0o4755, 1700000000)
        assert member.pax_headers["SCHILY.xattr.security.capability"] == "\x01\x02"
        assert (found["null"].type, found["null"].devmajor, found["null"].devminor) == (tarfile.CHRTYPE, 1, 3)
        assert found["pipe"].type == tarfile.FIFOTYPE

    def test_a_hard_link_outlives_its_first_name(self, tmp_path: Path) -> None:
        below = layer(entry("a", b"data"), hard_link("b", "a"), hard_link("c", "a"))
        found = merged(tmp_path, below, layer(entry(".wh.a")))
        assert set(found) == {"b", "c"}
        assert found.text["b"] == b"data"
        assert (found["b"].isreg(), found["c"].islnk()) == (True, True)
        with pytest.raises(UsageError, match="a hard link 'x' to 'gone'"):
            merged(tmp_path, layer(hard_link("x", "gone")))

    def test_a_link_to_a_directory_stays_inside(self, tmp_path: Path) -> None:
        below = layer(entry("usr/lib", None), symlink("lib", "usr/lib"), symlink("up", "../../.."))
        found = merged(tmp_path, below, layer(entry("lib/a", b"1"), entry("up/etc/b", b"2")))
        assert found.text["usr/lib/a"] == b"1"
        assert found.text["etc/b"] == b"2"
        assert found["lib"].issym()

    def test_a_loop_of_links_ends(self, tmp_path: Path) -> None:
        found = merged(tmp_path, layer(symlink("a", "b"), symlink("b", "a"), entry("a/c", b"1")))
        assert found["a"].isdir()

    @pytest.mark.parametrize("name", ["../x", "a/../../x", "a/.."])
    def test_a_name_that_leads_out_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match="could lead out of the root file system"):
            merged(tmp_path, layer(entry(name, b"1")))
        with pytest.raises(UsageError, match="could lead out of the root file system"):
            merged(tmp_path, layer(hard_link("a", name)))

    def test_absolute_names_start_at_the_root(self, tmp_path: Path) -> None:
        assert set(merged(tmp_path, layer(entry("/etc/./a", b"1")))) == {"etc", "etc/a"}

    def test_a_layer_that_is_no_archive(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="layer 1 of 1 is not a tar archive"):
            merged(tmp_path, b"no archive" * 100)


BASE = layer(
    entry("bin", None), entry("bin/sh", b"a shell", mode=0o755), entry("app", None), entry("gone", b"1")
)
TOP = layer(entry("app/data", b"new", uid=1000, gid=1000), entry(".wh.gone"))


def blob(top: Path, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (top / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (top / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def image(top: Path, *packed: bytes, plain: tuple[bytes, ...] = (BASE, TOP), **about: Any) -> dict[str, Any]:
    """Write an image's blobs, and return the descriptor of its manifest."""
    contents = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in plain]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": PROCESS,
        "rootfs": {"type": "layers", "diff_ids": contents},
    } | about
    kind = "application/vnd.oci.image.layer.v1.tar"
    ends = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(top, json.dumps(config).encode())
        | {"mediaType": "application/vnd.oci.image.config.v1+json"},
        "layers": [blob(top, data) | {"mediaType": kind + ends.get(data[:2], "")} for data in packed],
    }
    return blob(top, json.dumps(manifest).encode()) | {"mediaType": manifest["mediaType"]}


def layout(top: Path, *manifests: dict[str, Any]) -> Path:
    top.mkdir(exist_ok=True)
    (top / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (top / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    return top


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An OCI layout with a gzip layer and a zstd layer."""
    top = tmp_path / "image"
    return layout(top, image(top, gzip.compress(BASE), zstandard.compress(TOP)))


def check(found: Root) -> None:
    """Check that a root, unpacked, has the files of both layers, and the wishes of the image."""
    assert (found.location / "bin/sh").read_bytes() == b"a shell"
    assert (found.location / "app/data").read_bytes() == b"new"
    assert not (found.location / "gone").exists()
    assert (found.environment, found.directory) == (("PATH=/opt/bin:/bin", "A=b"), "/app")
    assert "its USER app is not used: commands run as root" in found.note
    assert "its ENTRYPOINT and CMD are not started: /bin/app serve 'two words'" in found.note


class TestImages:
    def test_a_layout(self, directory: Path) -> None:
        check(resolve(directory, root_image="never"))
        packed = resolve(directory)
        assert (packed.file_system, packed.init) == ("erofs", "auto")
        inode = packed.location.stat().st_ino
        assert resolve(directory).location.stat().st_ino == inode
        here = {path.name for path in packed.location.parent.iterdir() if path.suffix != ".lock"}
        assert here == {packed.location.name, packed.location.with_suffix(".root").name}

    def test_several_members_of_gzip(self, tmp_path: Path) -> None:
        top = tmp_path / "image"
        split = gzip.compress(BASE[:700]) + gzip.compress(BASE[700:])
        check(resolve(layout(top, image(top, split, TOP)), root_image="never"))

    @pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
    def test_the_archives_of_skopeo(self, tmp_path: Path, kind: str) -> None:
        directory, archive = tmp_path / "image", tmp_path / "image.tar"
        layout(directory, image(directory, gzip.compress(BASE), TOP))
        copied = ["skopeo", "--insecure-policy", "copy", f"oci:{directory}", f"{kind}:{archive}:name:1"]
        process.run(copied, deadline=soon())
        check(resolve(archive, root_image="never"))
        name = "docker.io/library/name:1" if kind == "docker-archive" else "name:1"
        check(resolve(f"{kind}:{archive}:{name}", root_image="never"))
        with pytest.raises(UsageError, match="has no image 'other'"):
            resolve(f"{kind}:{archive}:other")

    def test_of_several_images_the_user_chooses(self, tmp_path: Path) -> None:
        top = tmp_path / "image"
        name = container._REF_NAME
        one = image(top, BASE, TOP) | {"annotations": {name: "one"}}
        two = image(top, BASE, plain=(BASE,)) | {"annotations": {name: "two"}}
        layout(top, one, two)
        with pytest.raises(UsageError, match="has several images") as caught:
            resolve(top)
        assert "it has: one, two" in caught.value.hint
        check(resolve(f"oci:{top}:one", root_image="never"))

    def test_the_one_for_the_kernel_s_architecture(self, tmp_path: Path) -> None:
        top = tmp_path / "image"
        ours = image(top, BASE, TOP) | {"platform": {"architecture": "amd64", "os": "linux"}}
        other = image(top, BASE, TOP, architecture="arm64") | {
            "platform": {"architecture": "arm64", "os": "linux"}
        }
        index = blob(top, json.dumps({"manifests": [other, ours]}).encode())
        layout(top, index | {"mediaType": container._INDEXES[0]})
        check(resolve(top, root_image="never"))
        for manifest in (other, {key: value for key, value in other.items() if key != "platform"}):
            with pytest.raises(UsageError, match="is for arm64, and the kernel for linux/amd64"):
                resolve(layout(top, manifest))

    def test_a_damaged_layer(self, directory: Path) -> None:
        files = sorted((directory / "blobs/sha256").iterdir(), key=lambda path: path.read_bytes()[:2])
        (packed,) = [path for path in files if path.read_bytes().startswith(b"\x1f\x8b")]
        packed.write_bytes(gzip.compress(b"something else"))
        with pytest.raises(UsageError, match="has other contents than its digest says"):
            resolve(directory)
        packed.write_bytes(packed.read_bytes()[:-9])
        with pytest.raises(UsageError, match="a layer cannot be unpacked"):
            resolve(directory)
        packed.unlink()
        with pytest.raises(UsageError, match="is not a whole container image"):
            resolve(directory)
        assert not [path for path in cache.directory("root").iterdir() if path.suffix != ".lock"]

    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
    def test_an_archive_that_is_cut_off_or_of_something_else(
        self, directory: Path, tmp_path: Path, mode: Any
    ) -> None:
        (directory / "a").write_bytes(os.urandom(3_000_000))  # the first member
        file = tmp_path / "image.tar"
        with tarfile.open(file, mode) as archive:
            archive.add(directory, ".")
        assert container.is_image(file)
        file.write_bytes(file.read_bytes()[:2_000_000])
        with pytest.raises(UsageError, match="is a tar archive, and not a whole container image") as caught:
            resolve(file)
        assert "docker export" in caught.value.hint

    def test_a_disk_that_begins_with_zeros_is_no_archive(self, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(bytes(1 << 20))
        with pytest.raises(UsageError, match="has no file system that vmdebug knows"):
            resolve(tmp_path / "disk")

    @pytest.mark.parametrize("kind", ["index", "manifest"])
    def test_a_damaged_index_or_manifest(self, directory: Path, kind: str) -> None:
        (about,) = json.loads((directory / "index.json").read_text())["manifests"]
        media_type = f"application/vnd.oci.image.{kind}.v1+json"
        # An index that contains itself.
        again = json.dumps({"manifests": [about | {"mediaType": media_type}]})
        (directory / "blobs/sha256" / about["digest"].removeprefix("sha256:")).write_text(again)
        layout(directory, about | {"mediaType": media_type})
        with pytest.raises(UsageError, match="has other contents than its digest says"):
            resolve(directory)

    @pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "sha256:x", ""])
    def test_a_digest_is_never_a_path(self, tmp_path: Path, digest: str) -> None:
        with pytest.raises(UsageError, match=r"index\.json of the image is not as it should be"):
            resolve(layout(tmp_path / "image", {"digest": digest}))

    def test_options_that_do_not_go_with_it(self, directory: Path) -> None:
        with pytest.raises(UsageError, match="is for disk images"):
            resolve(directory, keep=True)
        with pytest.raises(UsageError, match="is not a container image"):
            resolve(f"oci:{directory.parent}")
        with pytest.raises(UsageError, match="does not exist"):
            resolve("oci-archive:/gone")


class Registry(http.server.BaseHTTPRequestHandler):
    """A registry with one image, read from an OCI layout; see the OCI distribution specification."""

    top: Path

    def do_GET(self) -> None:
        """Answer skopeo."""
        *_, kind, name = self.path.rstrip("/").split("/")
        if self.path in ("/v2/", "/v2"):
            return self._send(b"{}", "application/json")
        if kind == "manifests" and not name.startswith("sha256:"):
            name = json.loads((self.top / "index.json").read_text())["manifests"][0]["digest"]
        data = (self.top / "blobs/sha256" / name.removeprefix("sha256:")).read_bytes()
        media = json.loads(data)["mediaType"] if kind == "manifests" else "application/octet-stream"
        return self._send(data, media)

    do_HEAD = do_GET  # noqa: N815 - as http.server calls it

    def _send(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(data).hexdigest()}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def registry(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an image in a registry on this machine."""
    handler = type("Handler", (Registry,), {"top": directory})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    where = f"127.0.0.1:{server.server_port}"
    settings = tmp_path / ".config/containers/registries.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'[[registry]]\nlocation = "{where}"\ninsecure = true\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with contextlib.closing(server.socket):
        yield f"docker://{where}/name:1"
        server.shutdown()
        thread.join()


class TestRegistries:
    def test_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process, "find", lambda *_, **__: Path("/usr/bin/skopeo"))
        words = "/usr/bin/skopeo copy --override-os=linux --override-arch=amd64 docker://debian oci:/i"
        assert list(oci.fetch_argv("docker://debian", "amd64", Path("/i"))) == words.split()

    def test_an_image_is_fetched_once(self, registry: str, tmp_path: Path) -> None:
        assert "is not fetched yet" in resolve(registry, dry_run=True).note
        check(resolve(registry, root_image="never"))
        shutil.rmtree(tmp_path / "image")  # now the registry has nothing
        check(resolve(registry, root_image="never"))

    def test_a_name_that_no_registry_has(self, registry: str) -> None:
        with pytest.raises(BuildError, match=r"fetching docker://.*ended with status") as caught:
            resolve(f"{registry}/gone:1")
        assert "skopeo inspect docker://" in caught.value.hint
        assert shutil.which("skopeo")
