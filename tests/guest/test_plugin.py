"""The pytest plugin: real pytest runs on real guests."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from vmdebug import process, vm
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel

pytest_plugins = ["pytester"]

SECONDS = 120.0


@pytest.fixture(autouse=True)
def _private_home(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """pytester sets HOME to a new directory; the built kernel is in the cache of the real one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\nvmdebug_accel = tcg\nvmdebug_timeout = 60\n")


@pytest.fixture(scope="module")
def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def run(pytester: pytest.Pytester, suite: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(suite)
    return pytester.runpytest_subprocess(*options, timeout=SECONDS)


def section(result: pytest.RunResult, title: str) -> str:
    """Return the first section with a title in the report of a failure."""
    found = re.search(
        rf"^-+ {re.escape(title)} -+\n(.*?)\n[-_=]{{3,}} ", result.stdout.str(), re.DOTALL | re.MULTILINE
    )
    assert found, result.stdout.str()
    return found[1]


def test_each_fixture_is_a_fresh_guest_and_several_of_one_test_are_the_same_guest(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        """
        import pytest
        from vmdebug import StateError, UsageError
        from vmdebug.deadline import Deadline

        names = []

        def test_vm(vm):
            assert vm.exec("touch /tmp/left; uname -s").stdout == "Linux\\n"
            names.append(vm.name)

        def test_session(session):
            assert session.exec("ls /tmp/left").status != 0
            assert session.name not in names
            assert session._gdb is None  # nobody has asked for it

        def test_console(console):
            console.sendline("echo he''llo")
            console.expect("hello", timeout=30)

        def test_gdb(gdb, vm, session):
            assert gdb is session.gdb
            assert vm is session.vm
            assert gdb.stopped
            gdb.cont(wait=False)
            assert session.exec("echo on").stdout == "on\\n"

        def test_vm_beside_the_others(vm, console, session):
            console.sendline("echo there > /tmp/file; echo wri''tten")
            console.expect("written", timeout=30)
            assert vm.exec("cat /tmp/file").stdout == "there\\n"
            assert session.exec("cat /tmp/file").stdout == "there\\n"
            session.gdb.cont(wait=False)
            assert vm.exec("cat /tmp/file").stdout == "there\\n"
            session.gdb.interrupt()
            with pytest.raises(StateError, match="is paused\\ncontinue or quit the GDB that is attached"):
                vm.exec("true")

        def test_halted_when_it_is_too_late(vm, request):
            with pytest.raises(UsageError, match="has booted"):
                request.getfixturevalue("halted_session")

        def test_halted(halted_session, vm):
            assert vm is halted_session.vm
            halted_session.gdb.breakpoint("start_kernel")
            assert halted_session.gdb.cont(timeout=60).frame.function == "start_kernel"
        """,
    )

    result.assert_outcomes(passed=7)
    result.stdout.re_match_lines(
        [
            r"vmdebug: QEMU \d+\.\S+, tcg \(.*\), GDB \d+\.\S+",
            r"vmdebug: builtin: Linux \S+, build-id [0-9a-f]{12}",
        ]
    )


def test_the_next_tests_guest_is_made_beforehand_and_held_until_its_turn(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest
        import vmdebug
        from vmdebug.errors import VmdebugError
        from vmdebug.vm import registry

        names = []

        def spare(mine):
            while True:
                mine.exec("true")
                for each in set(registry.names()) - {mine.name}:
                    try:
                        if (found := vmdebug.attach(each)).status != "running":
                            return found
                    except VmdebugError:
                        pass  # it is on its way

        def test_halted_guests_are_known(halted_session):
            assert halted_session.status == "halted"

        def test_templates_are_known(vm):
            pass

        def test_one(vm):
            found = spare(vm)
            assert found.status == "paused"
            names.append(found.name)
            assert vmdebug.attach().name == vm.name  # no other one is meant

        def test_two(vm):
            assert [vm.name] == names
            assert vm.exec("echo on").stdout == "on\\n"
            assert spare(vm).status == "halted"

        def test_three(halted_session):
            halted_session.gdb.breakpoint("start_kernel")
            assert halted_session.gdb.cont(timeout=60).frame.function == "start_kernel"

        def test_four(vm):
            spare(vm)  # nobody comes for it

        @pytest.mark.skip
        def test_five(vm):
            pass
        """,
    )

    result.assert_outcomes(passed=6, skipped=1)


def test_trouble_ends_the_test_at_once_unless_it_is_allowed(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import time
        import pytest
        from vmdebug import GuestDiedError
        from vmdebug.deadline import Deadline

        PANIC = "echo c > /proc/sysrq-trigger"
        CRASH = "modprobe lkdtm; echo %s > /sys/kernel/debug/provoke-crash/DIRECT"

        def later(session, command):
            session.console.sendline(f"sleep 0.2; {command}")

        def test_panic(session):
            later(session, PANIC)
            time.sleep(3600)

        def test_panic_under_exec(session):
            session.exec(PANIC)

        def test_bug(session):
            later(session, CRASH % "BUG")
            try:
                time.sleep(3600)
            except Exception:
                pass

        def test_warn_that_nobody_waits_for(session):
            assert session.exec(CRASH % "WARNING").status == 0

        @pytest.mark.vmdebug(allow=["warn", "panic"])
        def test_allowed(session):
            session.exec(CRASH % "WARNING")
            with pytest.raises(GuestDiedError):
                session.exec(PANIC)

        def test_panic_of_a_guest_that_was_started_anew(session):
            session.restart()
            session.exec("true")  # it has booted
            later(session, PANIC)
            time.sleep(3600)

        def test_the_next_one(session):
            assert session.exec("true").status == 0
        """,
        "--vmdebug-artifacts=art",
    )

    result.assert_outcomes(failed=5, passed=2)
    result.stdout.fnmatch_lines(
        [
            "E *GuestFailure: kernel panic: Kernel panic - not syncing: sysrq triggered crash",
            "E *GuestFailure: kernel bug: kernel BUG at drivers/misc/lkdtm/bugs.c:*",
        ]
    )
    panics = re.findall(r"^E +GuestFailure: kernel panic: ", result.stdout.str(), re.MULTILINE)
    assert len(panics) == 3
    trace = section(result, "vmdebug: kernel panic")
    assert re.search(r"sysrq_handle_crash.* \S*drivers/tty/sysrq\.c:\d+", trace), trace
    [folder] = pytester.path.glob("art/*-test_panic")
    assert "sysrq_handle_crash" in folder.joinpath("console.txt").read_text()


def test_what_a_test_catches_or_is_over_for_fails_it_all_the_same(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import time

        def pytest_runtest_logreport(report):
            if "between" in report.nodeid and report.when == "call":
                time.sleep(1.5)  # meanwhile the kernel reports trouble
        """
    )
    result = run(
        pytester,
        """
        import time
        import pytest

        PANIC = "echo c > /proc/sysrq-trigger"
        WARN = "modprobe lkdtm; echo WARNING > /sys/kernel/debug/provoke-crash/DIRECT"

        def swallow(session):
            session.console.sendline(PANIC)
            try:
                time.sleep(3600)
            except BaseException:
                pass

        def test_caught(session):
            swallow(session)

        def test_skipped(session):
            session.console.sendline(PANIC)
            try:
                time.sleep(3600)
            except BaseException:
                pytest.skip("no guest")

        def test_told_with_another(session):
            session.console.sendline(PANIC)
            try:
                time.sleep(3600)
            finally:
                assert False

        @pytest.fixture
        def deaf(session):
            swallow(session)

        def test_caught_in_setup(deaf):
            pass

        @pytest.fixture
        def torn_down(session):
            yield
            print("it is torn down")

        def test_between_its_phases(session, torn_down):
            session.console.sendline(f"(sleep 0.7; {WARN}) &")

        def test_the_next_one(vm):
            assert vm.exec("true").status == 0
        """,
    )

    result.assert_outcomes(failed=3, errors=2, passed=2)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_caught_in_setup*",
            "*ERROR at teardown of test_between_its_phases*",
            "it is torn down",
        ]
    )
    told = r"^(?:E +GuestFailure: )?kernel (?:panic|warn): "
    assert len(re.findall(told, result.stdout.str(), re.MULTILINE)) == 5


def test_a_failure_shows_the_suites_lines_and_none_of_vmdebug(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture
        def prepared(session):
            session.exec("prepare", check=True)
        """
    )
    result = run(
        pytester,
        """
        import unittest
        import pytest

        def test_fixture(prepared):
            pass

        class TestOld(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def guest(self, session):
                self.session = session

            def test_case(self):
                self.session.exec("false", check=True)
        """,
        "--show-capture=no",
    )

    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            '>       session.exec("prepare", check=True)',
            "E       vmdebug.errors.VmError: 'prepare' ended with status 127 in the guest",
            '>       self.session.exec("false", check=True)',
            "E       vmdebug.errors.VmError: 'false' ended with status 1 in the guest",
        ]
    )
    result.stdout.no_fnmatch_line("*/vmdebug/*.py:*")


def test_a_failed_tests_guest_still_runs_for_the_fixtures_that_are_torn_down(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        """
        import pytest

        @pytest.fixture
        def file(vm):
            vm.exec("touch /tmp/file", check=True)
            yield
            vm.exec("rm /tmp/file", check=True, timeout=20)

        def test_fails(file):
            assert False
        """,
    )

    result.assert_outcomes(failed=1)
    assert section(result, "vmdebug: backtraces").startswith("CPU 0: pid ")


def test_what_fails_in_teardown_has_its_report_too(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest

        @pytest.fixture
        def panics(session):
            yield
            session.exec("echo c > /proc/sysrq-trigger")

        def test_panics(panics):
            pass

        @pytest.fixture
        def raises(vm):
            yield
            raise ValueError(vm.exec("echo evidence").stdout)

        def test_raises(raises):
            pass
        """,
        "--vmdebug-artifacts=art",
    )

    result.assert_outcomes(passed=2, errors=2)
    assert "sysrq_handle_crash" in section(result, "vmdebug: kernel panic")
    [stacks, _] = sorted(pytester.path.glob("art/*/backtraces.txt"))
    assert "sysrq_handle_crash" in stacks.read_text()


def test_a_guest_that_hangs_ends_its_own_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import os, signal, time
        import pytest

        @pytest.mark.vmdebug(timeout=1)
        def test_hang(session):
            session.exec("while :; do :; done", timeout=3600)

        @pytest.mark.timeout(2, method="signal")
        def test_pytest_timeout(session):
            session.exec("sleep 3600", timeout=3600)

        def test_killed_qemu(vm):
            os.kill(vm.state.pid, signal.SIGKILL)
            time.sleep(3600)

        def test_stopped_on_purpose(vm):
            vm.stop(force=True)

        @pytest.mark.vmdebug(append="rdinit=/nowhere root=/dev/nowhere panic=0")
        @pytest.mark.parametrize("again", [1, 2])
        def test_never_boots(vm, again):
            pass

        def test_the_next_one(vm):
            assert vm.exec("true").status == 0
        """,
        "-o",
        "vmdebug_boot_timeout=20",
    )

    result.assert_outcomes(failed=3, errors=2, passed=2)
    result.stdout.fnmatch_lines_random(
        [
            "E *GuestFailure: the test has taken more than 1 s*",
            "E *Failed: Timeout *",
            "E *GuestFailure: QEMU of test_killed_qemu-* was killed by SIGKILL",
            "*Kernel panic - not syncing: *",
        ]
    )
    assert "mount_root" in section(result, "vmdebug: kernel panic")
    result.stdout.fnmatch_lines(["*_ test_hang _*", "*- vmdebug: console -*", "vmdebug: guest ready*"])


def test_a_guest_that_does_not_boot_has_its_report_once_and_is_kept(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.vmdebug(append="rdinit=/nowhere root=/dev/nowhere panic=0")
        @pytest.mark.parametrize("again", [1, 2])
        def test_never_boots(vm, again):
            pass
        """,
        "--vmdebug-keep",
        "--vmdebug-artifacts=art",
    )

    try:
        result.assert_outcomes(errors=2)
        assert re.search(r"mount_root\+\S+ \(init/do_mounts\.c:\d+", section(result, "vmdebug: kernel panic"))
        result.stdout.fnmatch_lines(
            ["see the report of *::test_never_boots[[]1], the first test that needed this guest"]
        )
        assert result.stdout.str().count("vmdebug: kernel panic") == 1
        [folder] = pytester.path.glob("art/*")
        assert "mount_root" in folder.joinpath("backtraces.txt").read_text()
        result.stdout.fnmatch_lines(["kept for *::test_never_boots[[]1]: vmdebug attach builtin-template"])
        assert vm.find("builtin-template").status() == "panicked"
    finally:
        for each in vm.every():
            each.stop(force=True)


def test_pytest_timeout_does_not_end_a_report_and_with_it_the_run(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import time
        from vmdebug import postmortem

        collect = postmortem.collect

        def slow(*arguments, **options):
            time.sleep(5)
            return collect(*arguments, **options)

        postmortem.collect = slow
        """
    )
    result = run(
        pytester,
        """
        import pytest

        def test_the_template_is_there(vm):
            pass

        @pytest.mark.timeout(4, method="signal")
        def test_fails(vm):
            assert False

        @pytest.fixture
        def raises(vm):
            yield
            raise ValueError

        @pytest.mark.timeout(4, method="signal")
        def test_fails_in_teardown(raises):
            pass
        """,
    )

    result.assert_outcomes(passed=2, failed=1, errors=1)
    assert section(result, "vmdebug: backtraces")


def test_a_failing_vm_is_kept_for_a_person(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def test_fails(session):
            session.exec("echo evidence > /tmp/file")
            assert False

        def test_passes(vm):
            pass
        """,
        "--vmdebug-keep",
    )

    found = re.search(r"vmdebug attach (test_fails-\S+)", result.stdout.str())
    assert found, result.stdout.str()
    kept = vm.find(found[1])
    try:
        assert kept.exec("cat /tmp/file").stdout == "evidence\n"
        assert [each.name for each in vm.every()] == [kept.name]
    finally:
        kept.stop(force=True)


def test_a_matrix_of_kernels_is_named_in_the_tests(pytester: pytest.Pytester, kernel: object) -> None:
    result = run(
        pytester,
        """
        import pytest

        def test_one(vm):
            pass

        @pytest.mark.vmdebug(kernel="only")
        def test_two(vm):
            pass
        """,
        "--collect-only",
        "-q",
        "--vmdebug-kernel=/src/linux-a/arch/x86/boot/bzImage",
        "--vmdebug-kernel=/src/linux-b/arch/x86/boot/bzImage",
    )

    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*::test_one[[]linux-a]", "*::test_one[[]linux-b]", "*::test_two"])


def test_four_workers_share_one_template_and_lose_no_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import json, os
        import pytest

        @pytest.mark.parametrize("number", range(12))
        def test_each(session, number):
            assert session.exec(f"echo {number}").stdout == f"{number}\\n"
            with open("clones.jsonl", "a") as out:
                print(json.dumps([session.name, session.vm.facts()["clone_of"]]), file=out)
        """,
        "-n4",
    )

    result.assert_outcomes(passed=12)
    out = result.stdout.str()
    assert len(re.findall(r"^vmdebug: QEMU \d+\.\S+, tcg \(.*\), GDB \d+\.\S+$", out, re.MULTILINE)) == 1
    assert len(re.findall(r"^vmdebug: builtin: Linux \S+, build-id [0-9a-f]{12}$", out, re.MULTILINE)) == 1
    lines = pytester.path.joinpath("clones.jsonl").read_text().splitlines()
    names, templates = zip(*map(json.loads, lines), strict=True)
    assert len(set(names)) == 12
    assert all(templates)


def test_each_test_has_the_disk_as_it_was(pytester: pytest.Pytester) -> None:
    disk = pytester.path / "disk.raw"
    disk.write_bytes(b"mine" + bytes(1 << 20))
    pytester.path.joinpath("vmdebug.toml").write_text(f'[guest.big]\nsource = "builtin"\ndisk = "{disk}"\n')
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.parametrize("number", range(2))
        def test_each(session, number):
            assert session.exec("head -c 4 /dev/vda").stdout == "mine"
            session.exec("echo evil > /dev/vda; sync", check=True)
            session.restart()
            assert session.exec("head -c 4 /dev/vda").stdout == "mine"
            session.exec("echo evil > /dev/vda; sync", check=True)
        """,
        "-n2",
        "--vmdebug-guest=big",
    )

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["big: each test starts its guest by boot: its changes to the disk * are not copied with its memory"]
    )
    assert disk.read_bytes().startswith(b"mine")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_run_that_is_ended_half_way(
    pytester: pytest.Pytester, number: signal.Signals
) -> None:
    """The `runtime` fixture checks that nothing is left."""
    pytester.makepyfile(
        """
        import select, signal, socket

        def test_waits(gdb, vm):
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            signal.set_wakeup_fd(theirs.fileno())  # a signal just before the wait ends it too
            print("half way", flush=True)
            select.select([ours], [], [])

        def test_whose_guest_is_on_its_way(gdb):
            pass
        """
    )
    child = pytester.popen([sys.executable, "-m", "pytest", "-s"], stdin=process.PIPE)
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if b"half way" in line:
                break
        child.send_signal(number)
        said, _ = child.communicate(timeout=SECONDS)
    finally:
        child.kill()
        child.wait()
    assert child.returncode in (-signal.SIGKILL, pytest.ExitCode.INTERRUPTED), said.decode()
    # GDB and the guardian end when their pipes close; the next look removes their files.
    status = process.run(
        [sys.executable, "-m", "vmdebug.cli", "status", "--json"], deadline=Deadline.after(SECONDS)
    )
    assert json.loads(status.stdout) == []


def test_trouble_that_the_console_does_not_show_fails_its_test_with_the_trace(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        """
        import pytest
        from vmdebug import VmdebugError

        WARN = "modprobe lkdtm; echo WARNING > /sys/kernel/debug/provoke-crash/DIRECT"

        @pytest.mark.vmdebug(append="quiet")
        def test_quiet(vm):
            vm.exec(WARN)

        @pytest.mark.vmdebug(append="loglevel=4", allow="warn")
        def test_allowed(vm):
            vm.exec(WARN)

        @pytest.mark.vmdebug(append="quiet", kaslr=True)
        def test_moved_by_kaslr(vm):
            vm.exec(WARN)

        @pytest.mark.vmdebug(append="loglevel=4")
        def test_stopped_by_gdb(session):
            session.exec(WARN)
            session.gdb

        def test_well(vm):
            vm.exec("true")

        @pytest.fixture
        def late(vm):
            yield vm
            vm.exec("dmesg -n 1; echo 0 >/sys/class/tty/ttyS0/console;" + WARN)

        def test_teardown(late):
            pass

        def test_dead(vm):
            # As with a full disk under its log, the console shows nothing from here on.
            vm.exec("echo 0 >/sys/class/tty/ttyS0/console")
            with pytest.raises(VmdebugError, match="the kernel panicked"):
                vm.exec("echo c > /proc/sysrq-trigger", timeout=60)
            with pytest.raises(VmdebugError, match="panicked"):
                vm.exec("true")
        """,
    )

    result.assert_outcomes(passed=3, failed=4, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "*kernel warn: WARNING: CPU: * at drivers/misc/lkdtm/bugs.c:*",
            "*kernel panic: Kernel panic - not syncing: sysrq triggered crash",
            "*the console did not show it; it is in the kernel's log",
        ]
    )
    assert re.search(
        r"lkdtm_do_action\S+ .*\(drivers/misc/lkdtm/core\.c:\d+", section(result, "vmdebug: kernel warn")
    )
    assert re.search(
        r"sysrq_handle_crash\S+ \(drivers/tty/sysrq\.c:\d+", section(result, "vmdebug: kernel panic")
    )


def test_trouble_is_read_by_dmesg_in_a_guest_without_symbols(
    pytester: pytest.Pytester, kernel: Kernel
) -> None:
    shutil.copy(kernel.image, pytester.path / "image")
    (pytester.path / "vmdebug.toml").write_text('default = "plain"\n[guest.plain]\nsource = "./image"\n')
    pytester.makeconftest(  # as for a kernel without CONFIG_KALLSYMS
        """
        from vmdebug.sources.kernels import own_symbols

        own_symbols.with_symbols = lambda spec, *, report: spec
        """
    )
    result = run(
        pytester,
        """
        import pytest

        pytestmark = pytest.mark.vmdebug(append="quiet")

        @pytest.fixture(autouse=True)
        def no_symbols(vm):
            assert vm.state.spec.kernel.vmlinux is None

        def test_warns(vm):
            vm.exec("echo '<4>WARNING: CPU: 0 PID: 1 at a.c:1 a+0x1/0x2' >/dev/kmsg")

        @pytest.mark.vmdebug(append="quiet", allow="warn")
        def test_allowed(vm):
            vm.exec("echo '<4>WARNING: CPU: 0 PID: 1 at a.c:1 a+0x1/0x2' >/dev/kmsg")

        def test_stopped(session):
            session.gdb

        def test_well(vm):
            vm.exec("true")

        @pytest.fixture
        def late(vm):
            yield vm
            vm.exec("echo '<4>BUG: late' >/dev/kmsg")

        def test_teardown(late):
            late.exec("echo '<4>an ordinary message' >/dev/kmsg")
        """,
    )
    result.assert_outcomes(passed=4, failed=1, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "*kernel warn: WARNING: CPU: 0 PID: 1 at a.c:1 a+0x1/0x2",
            "*kernel bug: BUG: late",
            "*the console did not show it; it is in the kernel's log",
        ]
    )


def test_a_panic_fails_its_test_while_the_disk_of_its_log_is_full(
    pytester: pytest.Pytester, runtime: Path
) -> None:
    pytester.makepyfile(
        """
        import os
        import pytest
        from vmdebug import VmdebugError

        def test_panic(vm):
            top = os.environ["XDG_RUNTIME_DIR"]
            with open(f"{top}/full", "wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(1 << 12))
            try:
                with pytest.raises(VmdebugError, match="panicked"):
                    vm.exec("echo c > /proc/sysrq-trigger", timeout=60)
            finally:
                os.unlink(f"{top}/full")
        """
    )
    mounted = f"mount -t tmpfs -o size=2m none {runtime} && exec {sys.executable} -m pytest"
    # A user namespace lets every user mount a tmpfs, see user_namespaces(7).
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounted]
    done = process.run(words, cwd=pytester.path, deadline=Deadline.after(SECONDS), check=False)
    assert "kernel panic: Kernel panic - not syncing: sysrq triggered crash" in done.stdout, done.stdout
    assert "1 failed" in done.stdout


def test_kmemleak_is_asked_for_where_a_kernel_does_not_have_it(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.vmdebug(kmemleak=True)
        def test_leaks(vm):
            pass
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the test's marker asks for kmemleak, which this guest does not have*"])


def test_several_guests_on_one_segment(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest

        seen = []

        def test_two(sessions, vm):
            a, b = sessions
            assert a.vm is vm
            assert [each.vm.address for each in sessions] == ["10.254.12.1", "10.254.12.2"]
            assert {each.exec("hostname").stdout.strip() for each in sessions} == {a.name, b.name}
            assert a.exec(f"ping -c 1 -W 20 {b.vm.address}").status == 0
            b.gdb.breakpoint("icmp_echo")
            sent = a.exec(f"ping -c 1 -W 20 {b.vm.address}", wait=False)
            assert b.gdb.cont(timeout=30).frame.function == "icmp_echo"
            b.gdb.delete_all()
            b.gdb.cont(wait=False)
            assert sent.result(timeout=30).status == 0
            seen.append(vm.name)

        @pytest.mark.vmdebug(sessions=3, net="user")
        def test_the_second_dies(sessions):
            a, b, c = sessions
            assert c.vm.address == "10.254.12.3"
            assert "10.0.2.15" in c.exec("ip addr").stdout
            b.exec("echo 0 >/proc/sys/kernel/panic_on_oops; echo c >/proc/sysrq-trigger")
        """,
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines("*GuestFailure: kernel panic*")
    assert "sysrq" in section(result, "vmdebug: guest-2: kernel panic")
    assert "vmdebug: guest-1: kernel panic" not in result.stdout.str()
