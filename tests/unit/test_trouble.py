"""Kernel trouble: consoles of real guests in `splats`, and other formats from the kernel source."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures import kernelheadlines
from vmdebug.channel.log import headlines
from vmdebug.channel.log.trouble import KINDS, Scanner, Trouble, as_logged, find, unseen
from vmdebug.channel.log.watcher import Watcher
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, StateError

SPLATS = Path(__file__).with_name("splats")
BOOT = "[    0.000000] Linux version 6.1.0 (x@y)\r\n"


def recorded(name: str) -> str:
    return (SPLATS / f"{name}.log").read_bytes().decode(errors="replace")


def kinds(text: str) -> list[str]:
    return [each.kind for each in find(text)]


def test_a_panic_whose_guest_pvpanic_stopped_has_its_whole_stack() -> None:
    (panic,) = find(recorded("panic"))
    assert panic.kind == "panic"
    assert panic.headline == "Kernel panic - not syncing: sysrq triggered crash"
    assert (panic.cpu, panic.pid, panic.comm, panic.release) == (0, 40, "sh", "6.1.192-vmdebug")
    assert panic.text.splitlines()[0].endswith("Kernel panic - not syncing: sysrq triggered crash")
    assert panic.text.splitlines()[-1].endswith("</TASK>")
    assert "sysrq_handle_crash+0x10/0x10" in panic.text


def test_each_of_several_gets_its_own_text_of_the_kernels_log() -> None:
    first, second = find(recorded("warn"))
    garbled = find(
        recorded("warn").replace("lkdtm_WARNING", "lkdtm_WARNINGG").replace("cut here", "cut hhere")
    )
    assert garbled[0].text != first.text
    assert as_logged(garbled, recorded("warn")) == (
        msgspec.structs.replace(garbled[0], text=first.text),
        msgspec.structs.replace(garbled[1], text=second.text),
    )
    assert as_logged(garbled, "") == garbled


def test_warnings_are_told_each_with_its_message() -> None:
    first, second = find(recorded("warn"))
    assert first.headline.startswith("WARNING: CPU: 0 PID: 40 at drivers/misc/lkdtm/bugs.c:85 lkdtm_WARNING+")
    assert second.headline.endswith("[lkdtm]: Warning message trigger count: 2")
    for each in (first, second):
        assert each.kind == "warn"
        assert each.complete
        assert "cut here" in each.text.splitlines()[0]
        assert "end trace" in each.text.splitlines()[-1]


def test_what_die_says_below_a_bug_is_part_of_it() -> None:
    (bug,) = find(recorded("bug"))
    assert (bug.kind, bug.headline) == ("bug", "kernel BUG at drivers/misc/lkdtm/bugs.c:78!")
    assert "invalid opcode: 0000 [#1] SMP" in bug.text


def test_what_die_says_below_a_fault_is_part_of_it() -> None:
    (oops,) = find(recorded("oops"))
    assert oops.kind == "oops"
    assert oops.headline == "BUG: kernel NULL pointer dereference, address: 0000000000000000"
    assert "Oops: 0002 [#1]" in oops.text


@pytest.mark.parametrize("kind", ["kasan", "lockdep", "hung_task", "lockup"])
def test_what_the_checkers_report(kind: str) -> None:
    found = find(recorded(kind))
    assert kind in {each.kind for each in found}
    assert all(each.complete for each in found)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("panic", "Kernel panic - not syncing: Fatal exception in interrupt"),
        ("oops", "BUG: unable to handle kernel paging request at ffffffff81000000"),
        ("oops", "BUG: unable to handle page fault for address: ffffffffdeadbeef"),
        ("oops", "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP"),
        ("oops", "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP"),
        ("oops", "divide error: 0000 [#1] PREEMPT SMP"),
        ("oops", "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000"),
        ("oops", "Internal error: synchronous external abort: 0000000096000210 [#1] PREEMPT SMP"),
        ("oops", "Oops [#1]"),
        ("oops", "BUG: stack guard page was hit at 00000000f4a2 (stack is 0..1)"),
        ("bug", "kernel BUG at mm/slub.c:304!"),
        ("bug", "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:283"),
        ("bug", "BUG: scheduling while atomic: sh/40/0x00000002"),
        ("bug", "BUG kmalloc-64 (Not tainted): Poison overwritten"),
        ("warn", "WARNING: CPU: 1 PID: 1 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110"),
        ("warn", "WARNING: lib/refcount.c:28 at refcount_warn_saturate+0xba/0x110, CPU#1: sh/40"),
        ("warn", "WARNING: at refcount_warn_saturate+0xba/0x110, CPU#1: sh/40"),
        ("lockdep", "WARNING: possible circular locking dependency detected"),
        ("lockdep", "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected"),
        ("lockdep", "WARNING: inconsistent lock state"),
        ("lockdep", "WARNING: suspicious RCU usage"),
        ("lockdep", "[ BUG: Invalid wait context ]"),
        ("kasan", "BUG: KASAN: use-after-free in kmalloc_uaf+0x5b/0x60"),
        ("kcsan", "BUG: KCSAN: data-race in a / b"),
        ("kfence", "BUG: KFENCE: out-of-bounds read in f+0x1/0x2"),
        ("kmsan", "BUG: KMSAN: uninit-value in f+0x1/0x2"),
        ("ubsan", "UBSAN: array-index-out-of-bounds in lib/x.c:12:3"),
        ("hung_task", "INFO: task kworker/0:1:9 blocked for more than 120 seconds."),
        (
            "hung_task",
            "INFO: The task sh:77 has been waiting for writeback completion for more than 121 seconds.",
        ),
        ("rcu_stall", "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:"),
        ("rcu_stall", "rcu: INFO: rcu_preempt self-detected stall on CPU"),
        ("rcu_stall", "INFO: rcu_tasks detected stalls on tasks:"),
        ("rcu_stall", "rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 1-... }"),
        ("lockup", "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:40]"),
        ("lockup", "watchdog: Watchdog detected hard LOCKUP on cpu 0"),
        ("lockup", "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0"),
        ("lockup", "virtio_net virtio0 eth0: NETDEV WATCHDOG: CPU: 0: transmit queue 0 timed out 5012 ms"),
        ("bug", "BUG:sequencer:dl:no ascb?!"),
        ("page_alloc", "sh: page allocation failure: order:4, mode:0x40cc0(GFP_KERNEL|__GFP_COMP)"),
        ("page_alloc", "insmod: vmalloc error: size 4096, failed to map pages, mode:0xcc0(GFP_KERNEL)"),
        ("page_alloc", "SLUB: Unable to allocate memory on node -1, gfp=0xcc0(GFP_KERNEL)"),
        ("oom", "sh invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0"),
        ("oom", "Out of memory: Killed process 77 (sh) total-vm:1kB, anon-rss:1kB, file-rss:0kB"),
        ("oom", "Memory cgroup out of memory: Killed process 77 (sh) total-vm:1kB"),
        ("kmemleak", "kmemleak: 11 new suspected memory leaks (see /sys/kernel/debug/kmemleak)"),
        ("refcount", "unregister_netdevice: waiting for lo to become free. Usage count = 2"),
        ("refcount", "VFS: Busy inodes after unmount of sda1 (ext4)"),
        ("refcount", "ref_tracker: lo@00000000 has 1/1 users at: leaked reference."),
        ("msr", "unchecked MSR access error: RDMSR from 0x1234 at rIP: 0xffffffff81000000 (f+0x1/0x2)"),
        ("msr", "unchecked MSR access error: WRMSR to 0x1b0 (tried to write 0x0000) at rIP: 0x1 (f+0x1/0x2)"),
        ("irq", 'irq 10: nobody cared (try booting with the "irqpoll" option)'),
        ("irq", "__common_interrupt: 1.55 No irq handler for vector"),
        ("irq", "Uhhuh. NMI received for unknown reason 3d on CPU 0."),
        ("mce", "mce: [Hardware Error]: CPU 0: Machine Check: 0 Bank 4: b200000000070005"),
        ("sysfs", "sysfs: cannot create duplicate filename '/devices/virtual/x'"),
        ("kunit", "not ok 1 example"),
        ("kunit", "    not ok 12 example_simple_test"),
        ("bug", "BUG: Bad page state in process sh  pfn:01234"),
        ("bug", "BUG: Bad rss-counter state mm:00000000f4a2 type:MM_ANONPAGES val:1"),
        ("bug", "BUG: spinlock bad magic on CPU#0, sh/40"),
        ("bug", "BUG: using smp_processor_id() in preemptible [00000000] code: sh/40"),
        (
            "bug",
            "softirq: huh, entered softirq 3 NET_RX 00000000 with preempt_count 00000100, exited with 1?",
        ),
        ("lockdep", "BUG: MAX_LOCKDEP_ENTRIES too low!"),
        ("ubsan", "UBSAN: array-index-out-of-bounds in ./include/linux/x.h:12:3"),
        ("hung_task", "INFO: task :77 blocked for more than 120 seconds."),
        ("hung_task", "INFO: task sh:77 blocked in I/O wait for more than 120 seconds."),
        ("warn", "WARNING: stack recursion on stack type 4"),
        ("lockup", "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 30s!"),
    ],
)
@pytest.mark.parametrize(
    "stamp",
    [
        "",
        "[   12.345678] ",
        "[   12.345678][    T1] ",
        "[   12.345678][ C0] ",
        "<4>[    1.0] ",
        "[   12.345678] [   T77] ",
        "[   12.345678][   T77(sh)@1] ",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_headline(kind: str, words: str, stamp: str, end: str) -> None:
    (found,) = find(f"{stamp}{words}{end}")
    assert (found.kind, found.headline) == (kind, words)


@pytest.mark.parametrize("file", sorted(kernelheadlines.RECORDED.iterdir()), ids=lambda file: file.stem)
def test_each_headline_of_newer_kernels_is_known_or_is_no_trouble(file: Path) -> None:
    """`tests/guest` has the same test on the source of the builtin kernel."""
    texts = kernelheadlines.recorded(file)
    assert len(texts) > 100
    assert kernelheadlines.unknown(texts) == []


@pytest.mark.parametrize("form", headlines.FORMS, ids=lambda form: f"{form.kind} {form.source.split()[0]}")
def test_each_row_of_the_table_has_a_kind_and_a_source(form: headlines.Form) -> None:
    assert form.kind in KINDS
    assert form.source
    assert not form.starts.match("")


def test_each_kind_has_a_row() -> None:
    assert {form.kind for form in headlines.FORMS} == set(KINDS)


COLOURS = "\x1b[0m", "\x1b[1;31m", "\x1b]0;title\x07", "\x1b7", "\x1b[?2004h"


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("name", ["panic", "warn", "bug", "oops"])
def test_colours_hide_nothing(name: str, colour: str) -> None:
    text = recorded(name)
    coloured = "".join(f"{colour}{line[:16]}{colour}{line[16:]}" for line in text.splitlines(keepends=True))
    assert find(coloured) == find(text)


@pytest.mark.parametrize("name", ["panic", "warn", "bug", "oops"])
def test_a_stamp_in_the_middle_of_a_line_begins_another(name: str) -> None:
    boot, *lines = recorded(name).splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if find(boot + line) or "cut here" in line)
    lines[first] = f"[    0.5] half a line: {lines[first]}"
    text = boot + "".join(f"half a program's: {line}" for line in lines)
    assert [(each.kind, each.headline) for each in find(text)] == [
        (each.kind, each.headline) for each in find(recorded(name))
    ]


def test_a_task_without_a_name_is_one_all_the_same() -> None:
    (found,) = find(recorded("bug").replace("Comm: sh", "Comm: "))
    assert (found.cpu, found.comm, found.release) == (0, "", "6.1.192-vmdebug")


def by_caller(text: str, caller: str) -> list[str]:
    """Return a recorded console's lines with a caller behind each stamp, as CONFIG_PRINTK_CALLER prints."""
    lines = text.splitlines(keepends=True)
    return [line.replace("] ", f"][{caller:>6}] ", 1) for line in lines if line.startswith("[")]


@settings(max_examples=60)
@given(
    st.sampled_from([("warn", "oops"), ("bug", "warn"), ("oops", "bug")]),
    st.lists(st.booleans(), min_size=400, max_size=400),
    st.sampled_from([("T77", "C1"), ("T77", "T78"), ("C0", "C1")]),
)
def test_what_several_cpus_say_at_once_is_told_apart_by_the_callers(
    names: tuple[str, str], order: list[bool], callers: tuple[str, str]
) -> None:
    apart = [by_caller(recorded(name), caller) for name, caller in zip(names, callers, strict=True)]
    # They are said at the same moment.
    both = [
        [f"[    2.000001]{line.partition(']')[2]}" for line in lines if "Linux version" not in line]
        for lines in apart
    ]
    mixed, queues = [], [list(lines) for lines in both]
    for first in order:
        queue = queues[0 if first else 1] or queues[1 if first else 0]
        if queue:
            mixed.append(queue.pop(0))
    text = "".join([*mixed, *queues[0], *queues[1]])
    found = find(text)
    wanted = [each for lines in both for each in find("".join(lines))]
    assert sorted(each.text for each in found) == sorted(each.text for each in wanted)
    assert not any(each.interleaved for each in found)


CUT = "[    2.0] ------------[ cut here ]------------\n"


def test_without_callers_what_is_mixed_says_so() -> None:
    first = f"{CUT}[    2.0] WARNING: CPU: 0 PID: 1 at a.c:1 a+0x1/0x2\n"
    second = first.replace("CPU: 0 PID: 1 at a", "CPU: 1 PID: 2 at b").replace("2.0", "2.1")
    ends = 2 * "[    2.2] ---[ end trace 0 ]---\n"
    assert [each.interleaved for each in find(first + second + ends)] == [True, True]
    assert [each.interleaved for each in find(first + ends + second + ends)] == [False, False]


def test_the_panic_of_panic_on_warn_is_no_other_cpus() -> None:
    text = (
        f"{CUT}[    2.0] WARNING: CPU: 0 PID: 1 at a.c:1 a+0x1/0x2\n"
        "[    2.0] Kernel panic - not syncing: panic_on_warn set ...\n"
    )
    assert [(each.kind, each.interleaved) for each in find(text)] == [("warn", False), ("panic", False)]


def test_the_kernels_own_log_has_the_clean_text_of_what_was_mixed() -> None:
    mixed = msgspec.structs.replace(find(recorded("bug"))[0], text="mixed up", interleaved=True)
    (clean,) = as_logged([mixed], find(recorded("bug")))
    assert (clean.text, clean.interleaved) == (find(recorded("bug"))[0].text, False)


@pytest.mark.parametrize("name", ["panic", "warn", "bug", "oops", "lockdep", "kasan"])
def test_what_the_console_shows_is_not_unseen(name: str) -> None:
    logged = find("".join(by_caller(recorded(name), "T40")), stamped=True)
    assert unseen(logged, find(recorded(name))) == ()
    assert unseen(logged, ()) == logged
    assert unseen(logged, find(recorded(name))[1:]) == logged[:1]


def test_a_console_without_stamps_shows_each_once() -> None:
    logged = find("".join(f"[    {second}.0] BUG: x\n" for second in (1, 5)))
    assert [each.time for each in logged] == ["1.0", "5.0"]
    assert [each.time for each in unseen(logged, find("BUG: x\n"))] == ["5.0"]


def test_the_message_of_a_warning_is_no_trouble_of_its_own() -> None:
    text = (
        "[    2.0] ------------[ cut here ]------------\n[    2.0] sh: page allocation failure: order:1\n"
        "[    2.0] WARNING: CPU: 0 PID: 1 at a.c:1 a+0x1/0x2\n[    2.0] ---[ end trace 0 ]---\n"
    )
    (found,) = find(text)
    assert (found.kind, found.headline.rpartition(": ")[2]) == ("warn", "order:1")


def test_what_the_oom_killer_kills_belongs_to_what_it_says() -> None:
    text = (
        "[    2.0] sh invoked oom-killer: gfp_mask=0x0, order=0\n[    2.0]  </TASK>\n[    2.0] Mem-Info:\n"
        "[    2.0] Out of memory: Killed process 77 (sh) total-vm:1kB\n"
    )
    (found,) = find(text)
    assert found.text.splitlines()[-1].endswith("total-vm:1kB")


@pytest.mark.parametrize(
    "text",
    [
        "[    1.0] WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks\n",
        "[    1.0] ------------[ cut here ]------------\n[    1.0] nothing comes of it\n",
        "[    1.0] audit: BUG: in the middle of a line\n",
        "[    1.0] unit: started [#1]\n",
        "[    1.0] INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.2 msecs\n",
        "[    1.0] INFO: lockdep is turned off.\n",
        "[    1.0] rcu: INFO: Stall ended before state dump start\n",
        "[    1.0]     ok 1 example_simple_test\n",
        "[    1.0] kmemleak: Kernel memory leak detector initialized (mem pool available: 15687)\n",
        "[    1.0] clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable\n",
        f"{BOOT}Kernel panic - not syncing: said by a program\n",
        f"{BOOT}~ # echo BUG: x\r\nBUG: x\r\n",
    ],
)
def test_what_is_no_trouble(text: str) -> None:
    assert find(text) == ()


def test_dmesg_on_the_console_repeats_nothing() -> None:
    once = recorded("warn")
    assert find(once + once[len(once.partition("\n")[0]) :]) == find(once)


def test_a_kernel_booted_anew_can_have_the_same_trouble_again() -> None:
    assert kinds(2 * recorded("bug")) == ["bug", "bug"]


def test_a_panic_ends_the_oops_that_led_to_it() -> None:
    text = recorded("oops") + "[    1.9] Kernel panic - not syncing: Fatal exception\r\n"
    assert kinds(text) == ["oops", "panic"]


def test_what_comes_much_later_is_not_of_it() -> None:
    (stall,) = find(
        "[    5.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:\n[    5.1] a stack\n"
        "[   17.0] eth0: link up\n"
    )
    assert stall.text.splitlines()[-1] == "[    5.1] a stack"


def test_what_programs_print_in_between_is_left_out() -> None:
    lines = recorded("oops").splitlines(keepends=True)
    (oops,) = find("".join(f"{line}a program's\r\n" for line in lines))
    assert oops == find("".join(lines))[0]


@settings(max_examples=60)
@given(st.sampled_from(["panic", "warn", "bug", "oops"]), st.lists(st.integers(0, 6000), max_size=20))
def test_whatever_pieces_it_comes_in(name: str, cuts: list[int]) -> None:
    data = (SPLATS / f"{name}.log").read_bytes()
    scanner = Scanner()
    places = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        scanner.feed(data[start:end])
    scanner.finish()
    assert scanner.troubles == find(data.decode(errors="replace"))


@settings(max_examples=60)
@given(st.sampled_from(["panic", "warn", "bug", "oops"]), st.sets(st.integers(0, 6000), max_size=60))
def test_characters_that_are_logged_twice(name: str, places: set[int]) -> None:
    text = recorded(name)
    doubled = "".join(
        2 * each if at in places and each not in "\r\n" else each for at, each in enumerate(text)
    )
    assert kinds(doubled) == kinds(text)


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_are_taken(data: bytes) -> None:
    scanner = Scanner()
    scanner.feed(data)
    scanner.finish()
    assert all(isinstance(each, Trouble) for each in scanner.troubles)


def test_the_watcher_tells_by_the_first_lines_and_settles_with_the_last(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    lines = recorded("bug").splitlines(keepends=True)
    headline = next(number for number, line in enumerate(lines) if "kernel BUG at" in line) + 1
    log.write_text("".join(lines[: headline - 1]), newline="")
    with Watcher(log) as watcher, log.open("a", newline="") as stream:
        assert watcher.poll() == ()
        print("".join(lines[headline - 1 : headline]), end="", file=stream, flush=True)
        (begun,) = watcher.wait(Deadline.after(30))
        assert not begun.complete
        print("".join(lines[headline:]), end="", file=stream, flush=True)
        (whole,) = watcher.settle(Deadline.after(30))
        assert whole.complete
        assert whole == find("".join(lines))[0]
        assert watcher.poll() == ()


def test_a_splat_that_goes_on_no_more_settles_too(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("[    1.0] Kernel panic - not syncing: x\n")
    with Watcher(log) as watcher:
        (panic,) = watcher.settle(Deadline.after(30))
    assert not panic.complete


def test_the_watcher_outlives_the_log(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("")
    with Watcher(log) as watcher, log.open("a") as stream:
        log.unlink()
        print("[    1.0] BUG: x", file=stream, flush=True)
        assert [each.headline for each in watcher.poll()] == ["BUG: x"]


def test_nothing_to_see_is_a_deadline(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("[    1.0] all is well\n")
    with Watcher(log) as watcher, pytest.raises(DeadlineError, match="kernel trouble"):
        watcher.wait(Deadline.after(0.01))


def test_a_watcher_is_used_inside_with(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="not open"):
        Watcher(tmp_path / "console.log").poll()
