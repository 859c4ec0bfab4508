import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdebug import config
from vmdebug.errors import HostError, UsageError
from vmdebug.guest_options import GuestOptions, StartOptions

FULL = """
default = "base"

[guest.base]
source = ".#base-nixos"
name = "b"
halt = true
kernel = "../linux"
vmlinux = "symbols/vmlinux"
gdb-scripts = "/opt/scripts"
debuginfod = true
append = "loglevel=7"
kaslr = true
accel = "tcg"
memory = "2G"
cpus = 2
disk = "~/disk.qcow2"
initrd = "initrd.img"
modules = "lib/modules"
module = ["../mine.ko", "/other.ko"]
load-modules = false
root = "../root"
root-dev = 1
root-image = "always"
init = "/lib/systemd/systemd"
keep = true
share = ["../data:/mnt:rw", "/other"]
login = true
trace-ready = "no"
record = true
force = true
net = "user"
forward = [22, "8080:80"]
firmware = "uefi"
tcp = true
qemu-args = ["-device", "edu"]
nix-args = ["--impure"]

[guest.patched]
source = "base"
kernel = "mine/bzImage"
memory = 256

[guest.tree]
source = "linux"
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "vmdebug.toml"
    path.write_text(text)
    return path


def refusal(directory: Path, text: str) -> UsageError:
    write(directory, text)
    with pytest.raises(UsageError) as caught:
        config.lookup(None, directory)
    assert str(directory / "vmdebug.toml") in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


class TestLookup:
    def test_everything_that_start_takes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        project = tmp_path / "project"
        project.mkdir()
        write(project, FULL)
        fields = tuple(key.replace("-", "_") for key in tomllib.loads(FULL)["guest"]["base"])
        assert {*fields} == {"source", *StartOptions.__annotations__}
        assert config.lookup("base", project) == GuestOptions(
            source=f"{project}#base-nixos",
            name="b",
            halt=True,
            kernel=str(tmp_path / "linux"),
            vmlinux=str(project / "symbols/vmlinux"),
            gdb_scripts="/opt/scripts",
            debuginfod=True,
            append="loglevel=7",
            kaslr=True,
            accel="tcg",
            memory=2048,
            cpus=2,
            disk="/home/me/disk.qcow2",
            initrd=str(project / "initrd.img"),
            modules=str(project / "lib/modules"),
            module=(str(tmp_path / "mine.ko"), "/other.ko"),
            load_modules=False,
            root=str(tmp_path / "root"),
            root_dev=1,
            root_image="always",
            init="/lib/systemd/systemd",
            keep=True,
            share=(f"{tmp_path}/data:/mnt:rw", "/other"),
            login=True,
            trace_ready="no",
            record="",
            force=True,
            net=("user",),
            forward=("22", "8080:80"),
            firmware="uefi",
            tcp=0,
            qemu_args=("-device", "edu"),
            nix_args=("--impure",),
            table="base",
            from_table=fields,
        )

    def test_every_option_but_the_tables_own_name_has_a_key(self) -> None:
        assert {key.replace("-", "_") for key in config._KEYS} == {*GuestOptions.__struct_fields__} - {
            "table",
            "from_table",
        }

    @pytest.mark.parametrize("root", ["host", "debian:bookworm"])
    def test_a_root_that_is_no_path(self, tmp_path: Path, root: str) -> None:
        write(tmp_path, f'[guest.g]\nsource = "builtin"\nroot = "{root}"\n')
        assert config.lookup("g", tmp_path).root == root

    def test_a_source_can_be_another_table(self, tmp_path: Path) -> None:
        write(tmp_path, FULL)
        base, patched = config.lookup("base", tmp_path), config.lookup("patched", tmp_path)
        assert patched.source == base.source
        assert patched.kernel == str(tmp_path / "mine/bzImage")
        assert (patched.memory, patched.cpus, patched.halt) == (256, 2, True)
        assert patched.name is None
        assert patched.table == "patched"

    def test_without_words_the_files_default(self, tmp_path: Path) -> None:
        write(tmp_path, FULL)
        assert config.lookup(None, tmp_path) == config.lookup("base", tmp_path)

    @pytest.mark.parametrize("default", [".#base", "./linux", "builtin"])
    def test_a_default_can_be_any_guest(self, tmp_path: Path, default: str) -> None:
        write(tmp_path, f'default = "{default}"')
        assert config.lookup(None, tmp_path) == GuestOptions(source=config.absolute_guest(default, tmp_path))

    def test_without_a_file_builtin(self, tmp_path: Path) -> None:
        assert config.lookup(None, tmp_path) == GuestOptions(source="builtin")
        assert config.names(tmp_path) == ()

    def test_builtin_can_be_given_options(self, tmp_path: Path) -> None:
        write(tmp_path, "[guest.builtin]\ncpus = 4")
        assert config.lookup(None, tmp_path) == GuestOptions(cpus=4, table="builtin", from_table=("cpus",))
        assert config.lookup("builtin", tmp_path).cpus == 4

    def test_the_nearest_file_counts(self, tmp_path: Path) -> None:
        deep = tmp_path / "a/b/c"
        deep.mkdir(parents=True)
        write(tmp_path, "[guest.outer]")
        assert config.names(deep) == ("outer",)
        write(tmp_path / "a", "[guest.inner]")
        assert config.names(deep) == ("inner",)
        assert config.find(deep) == tmp_path / "a/vmdebug.toml"

    def test_a_name_goes_before_a_file_and_a_path_does_not(self, tmp_path: Path) -> None:
        (tmp_path / "tree").mkdir()
        write(tmp_path, FULL)
        assert config.lookup("tree", tmp_path).table == "tree"
        assert config.lookup("./tree", tmp_path) == GuestOptions(source=str(tmp_path / "tree"))

    def test_words_that_can_be_no_name_need_no_file(self, tmp_path: Path) -> None:
        write(tmp_path, "broken [")
        assert config.lookup(".#base", tmp_path).source == f"{tmp_path}#base"
        assert config.lookup("/src/linux", tmp_path).source == "/src/linux"

    def test_in_the_current_directory_words_stay_as_they_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert config.lookup("linux").source == "linux"
        assert config.lookup(".#x").source == ".#x"


@pytest.mark.parametrize(
    ("words", "means"),
    [
        ("builtin", "builtin"),
        ("linux", "/p/linux"),
        ("./linux/", "/p/linux"),
        ("/src/linux", "/src/linux"),
        (".#x", "/p#x"),
        ("#x", "/p#x"),
        ("./sub?dir=a#x.y", "/p/sub?dir=a#x.y"),
        ("/src#x", "/src#x"),
        ("nixpkgs#x", "nixpkgs#x"),
        ("github:a/b#x", "github:a/b#x"),
        ("git+file:///p#x", "git+file:///p#x"),
    ],
)
def test_paths_are_anchored_and_nothing_else(words: str, means: str) -> None:
    assert config.absolute_guest(words, Path("/p")) == means


@given(st.text() | st.text("./#~?:ab\0", max_size=8))
def test_any_words_can_be_anchored_and_then_stay_as_they_are(words: str) -> None:
    anchored = config.absolute_guest(words, Path("/p"))
    assert config.absolute_guest(anchored, Path("/elsewhere")) == anchored


class TestErrors:
    def test_syntax_names_the_line(self, tmp_path: Path) -> None:
        assert "line 2" in refusal(tmp_path, "default = 'x'\n[guest.x\n").message

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "vmdebug.toml").write_bytes(b"default = '\xff'")
        with pytest.raises(UsageError, match="is not TOML"):
            config.lookup(None, tmp_path)

    @pytest.mark.parametrize(
        ("text", "message", "hint"),
        [
            ("defualt = 'x'", "unknown key 'defualt'", "did you mean 'default'?"),
            ("[guests.x]", "unknown key 'guests'", "did you mean 'guest'?"),
            ("[fast]\ncpus = 1", "unknown key 'fast'", "did you mean [guest.fast]?"),
            ("[guest.x]\nmemroy = 1", "[guest.x] unknown key 'memroy'", "did you mean 'memory'?"),
            ("[guest.x]\ngdb_scripts = '.'", "unknown key 'gdb_scripts'", "did you mean 'gdb-scripts'?"),
            ("[guest.x]\nzzz = 1", "[guest.x] unknown key 'zzz'", "the keys are: source, name, halt"),
            ("[guest.x]\ntable = 'y'", "[guest.x] unknown key 'table'", ""),
            ("[guest.x]\ncpus = 'two'", "[guest.x] cpus: expected int, got str", "start --help"),
            ("[guest.x]\ncpus = 0", "[guest.x] cpus: expected int >= 1", ""),
            ("[guest.x]\ncpus = true", "[guest.x] cpus: expected int, got bool", ""),
            ("[guest.x]\ntcp = 70000", "[guest.x] tcp: expected int <= 65535", ""),
            ("[guest.x]\nhalt = 1", "[guest.x] halt: expected bool, got int", ""),
            ("[guest.x]\nsource = 1", "[guest.x] source: expected str, got int", ""),
            ("[guest.x]\nkernel = ['a']", "[guest.x] kernel: expected str, got a list", ""),
            ("[guest.x]\nqemu-args = '-s'", "[guest.x] qemu-args: expected a list, got str", ""),
            ("[guest.x]\nqemu-args = [1]", "[guest.x] qemu-args[0]: expected str, got int", ""),
            ("[guest.x]\nmemory = 'much'", "[guest.x] memory: 'much' is not an amount of memory", "2G"),
            ("[guest.x]\nmemory = 1.5", "[guest.x] memory: expected int, got float", ""),
            ("[guest.x]\naccel = 'kmv'", "accel: Invalid enum value 'kmv'", "one of: auto, kvm, tcg"),
            ("[guest]\nx = 1", "guest.x: expected a table, got 1", "[guest.x]"),
            ("guest = 1", "guest: expected tables, got 1", "[guest.NAME]"),
            ("[guest.'a b']", "[guest.a b] is not a valid name", "letters"),
            ("default = 1", "default: expected a guest's name, got 1", ""),
            ("default = 'bse'\n[guest.base]", "default: no [guest.bse] in it", "did you mean 'base'?"),
            ("default = 'zz'\n[guest.base]\n[guest.fast]", "no [guest.zz] in it", "its guests: base, fast"),
            ("[guest.a]\nsource = 'b'\n[guest.b]\nsource = 'a'", "refer to each other: a → b → a", ""),
        ],
    )  # fmt: skip
    def test_a_key_that_cannot_be_right(self, tmp_path: Path, text: str, message: str, hint: str) -> None:
        error = refusal(tmp_path, text)
        assert message in error.message
        assert hint in error.hint

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> str:
            raise PermissionError(13, "Permission denied")

        write(tmp_path, "")
        monkeypatch.setattr(Path, "read_text", refuse)
        with pytest.raises(HostError, match="Permission denied"):
            config.lookup(None, tmp_path)
