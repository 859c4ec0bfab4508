import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError
from vmdebug.guest import Guest, Kernel
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.sources import nix
from vmdebug.sources.kernel_scripts.constants import Source
from vmdebug.sources.nixos import fetch_source

HASH = "0123456789abcdfghijklmnpqrsvwxyz"

Answers = dict[tuple[str, ...], str]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A kernel image in a store."""
    return tmp_path / f"{HASH}-linux-6.1/bzImage"


@pytest.fixture
def nixs(monkeypatch: pytest.MonkeyPatch) -> tuple[Answers, list[tuple[str, ...]]]:
    """Answers nix by the end of the command line, and records the command lines."""
    answers: Answers = {}
    asked: list[tuple[str, ...]] = []

    def run(argv: Sequence[str], **_: object) -> str:
        words = tuple(argv[argv.index("internal-json") + 1 :])
        asked.append(words)
        if words not in answers:
            raise BuildError("nix", detail=f"error: no answer to {' '.join(words)}")
        return answers[words]

    monkeypatch.setattr(nix, "run", run)
    return answers, asked


def fetch(image: Path, guest: Guest | None = None) -> Callable[[], Source] | None:
    return fetch_source.fetch(
        Kernel(arch="x86_64", image=image, origin="x"),
        guest or Guest(kind="runner", words="r"),
        GuestOptions(),
        report=silent,
        deadline=Deadline.after(9),
    )


def got(image: Path, guest: Guest | None = None) -> Source:
    get = fetch(image, guest)
    assert get is not None
    return get()


def test_a_kernel_that_is_in_no_store_has_none() -> None:
    assert fetch(Path("/boot/vmlinuz")) is None


BINDING, SHOW = ("--query", "--binding"), ("derivation", "show", "/s/linux.drv")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ((*BINDING, "src", "/s/linux.drv"), "SRC\n"),
        ((*BINDING, "__json", "/s/linux.drv"), '{"src": "SRC", "a": 1}'),
        # nix 2.34, and `derivation show` before.
        (
            SHOW,
            '{"derivations": {"linux.drv": {"env": {}, "structuredAttrs": {"src": "SRC"}}}, "version": 4}',
        ),
        (SHOW, '{"/s/linux.drv": {"env": {}, "structuredAttrs": {"src": "SRC"}}}'),
    ],
)
def test_by_the_derivation_of_the_image(
    image: Path, nixs: tuple[Answers, object], tmp_path: Path, question: tuple[str, ...], answer: str
) -> None:
    """nixpkgs' kernel has `__structuredAttrs`, for which newer nix has no variable `__json`."""
    answers, _ = nixs
    source = tmp_path / "linux-6.1.tar.xz"
    source.touch()
    answers["--query", "--deriver", str(image.parent)] = "/s/linux.drv\n"
    answers[question] = answer.replace("SRC", str(source))
    assert got(image) == Source(path=source, config=None)


@pytest.mark.parametrize("answer", ["{}", "[]", '{"/s/linux.drv": {"env": {}}}', "nonsense"])
def test_a_derivation_that_has_no_source(image: Path, nixs: tuple[Answers, object], answer: str) -> None:
    answers, _ = nixs
    answers["--query", "--deriver", str(image.parent)] = "/s/linux.drv\n"
    answers[SHOW] = answer
    with pytest.raises(UsageError, match="has no source for"):
        got(image)


def test_a_source_that_is_not_in_the_store_is_fetched(
    image: Path, nixs: tuple[Answers, list[tuple[str, ...]]], tmp_path: Path
) -> None:
    answers, asked = nixs
    source = tmp_path / "src"
    answers["--query", "--deriver", str(image.parent)] = "/s/linux.drv\n"
    answers["--query", "--binding", "src", "/s/linux.drv"] = f"{source}\n"
    answers["--query", "--references", "/s/linux.drv"] = "/s/builder.sh\n/s/perl.drv\n/s/src.drv\n"
    answers["--query", "--outputs", "/s/perl.drv"] = "/s/perl\n/s/perl-doc\n"
    answers["--query", "--outputs", "/s/src.drv"] = f"{source}\n"
    answers["--realise", "/s/src.drv"] = f"{source}\n"
    with pytest.raises(UsageError, match=f"{source} is not there; the guest is not from a flake"):
        got(image)
    assert asked[-1] == ("--realise", "/s/src.drv")


def test_by_attributes_of_the_kernel_that_boots(
    image: Path, nixs: tuple[Answers, list[tuple[str, ...]]], tmp_path: Path
) -> None:
    """The variant's kernel comes first; a source inside the flake is a path, not a derivation."""
    answers, _ = nixs
    system = "/f#.nixosConfigurations.a.config"
    variant, own = f"{system}.virtualisation.vmVariant.system.build.kernel", f"{system}.system.build.kernel"
    config, source = tmp_path / "config", tmp_path / "linux"
    config.write_text("CONFIG_X=y\n")
    source.mkdir()
    answers["--query", "--deriver", str(image.parent)] = "unknown-deriver\n"
    answers["eval", "--json", f"{variant}.outPath"] = json.dumps("/s/another")
    answers["eval", "--json", f"{own}.outPath"] = json.dumps(str(image.parent))
    answers["eval", "--json", f"{own}.src"] = json.dumps(str(source))
    built = [{"drvPath": "/s/c.drv", "outputs": {"out": str(config)}}]
    answers["build", "--no-link", "--json", f"{own}.configfile"] = json.dumps(built)
    guest = Guest(kind="flake", words="/f#a", location="/f", attribute="a")
    assert got(image, guest) == Source(path=source, config=b"CONFIG_X=y\n")


def test_where_nix_knows_nothing_it_says_why(image: Path, nixs: object) -> None:
    guest = Guest(kind="flake", words="/f#packages.vm", location="/f", attribute="packages.vm")
    with pytest.raises(UsageError, match="has no source for") as caught:
        got(image, guest)
    assert "no answer to --query --deriver" in caught.value.message
    assert "/f#packages.vm is not one of its nixosConfigurations" in caught.value.message
    assert caught.value.hint == "give the kernel's source with --source"
