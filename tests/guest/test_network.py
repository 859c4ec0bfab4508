"""Guests with networks: QEMU's user network, and segments, with GDB on one end of a connection."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmdebug
from tests.fixtures.accel import ACCEL, SECONDS
from tests.fixtures.segmenthub import hub
from tests.guest.test_roots import chroot  # noqa: F401 - a fixture
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError, VmError
from vmdebug.session import DebugSession
from vmdebug.vm.clones import clone as cloning


def start(**options: object) -> DebugSession:
    return vmdebug.start("builtin", accel=ACCEL, timeout=SECONDS, **options)  # type: ignore[arg-type]


def run(*words: str) -> str:
    argv = (sys.executable, "-m", "vmdebug.cli", *words)
    return process.run(argv, deadline=Deadline.after(SECONDS)).stdout


def listening(port: int) -> str:
    """Return the command that waits until a program in the guest listens on a port."""
    return f"until grep -q ':{port:04X} 00000000:0000 0A' /proc/net/tcp; do sleep 0.1; done"


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"a page of the host\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a server on 127.0.0.1."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_the_user_network_and_forwarded_ports(chroot: Path, web: int) -> None:  # noqa: F811 - a fixture
    for name in ("grep", "nc", "wget"):
        (chroot / "bin" / name).symlink_to("busybox")
    (chroot / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    with start(root=chroot, net="user", forward=[7, ":8/udp"]) as session:
        found = session.exec(f"wget -qO- http://10.0.2.2:{web}/; cat /etc/resolv.conf", timeout=SECONDS)
        assert found.stdout == "a page of the host\nnameserver 10.0.2.3\n"
        (nic,) = session.vm.facts()["net"]
        tcp, udp = nic["forwards"]
        assert (tcp["guest"], tcp["protocol"], udp["guest"], udp["protocol"]) == (7, "tcp", 8, "udp")
        job = session.exec("nc -l -p 7 -e sh -c 'cat >/tmp/received'", timeout=SECONDS, wait=False)
        session.exec(listening(7), check=True, timeout=SECONDS)
        with socket.create_connection(("127.0.0.1", tcp["host"]), timeout=SECONDS) as connection:
            connection.sendall(b"to the guest")
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        assert job.result(timeout=SECONDS).status == 0
        assert session.exec("cat /tmp/received", timeout=SECONDS).stdout == "to the guest"
        with pytest.raises(VmError, match="has no sshd"):
            session.ssh_config(timeout=SECONDS)
        with pytest.raises(UsageError, match=f"cannot listen on tcp port {tcp['host']} of") as caught:
            start(net="user", forward=f"{tcp['host']}:7")
        assert "forward another port" in caught.value.hint
    assert (chroot / "etc/resolv.conf").read_text() == "nameserver 192.0.2.1\n"


def test_gdb_on_one_end_of_a_connection(runtime: Path) -> None:
    with start(name="a", net="segment=lab") as a, start(name="b", net="segment=lab") as b:
        address = b.vm.address
        assert (a.vm.address, address) == ("10.177.196.1", "10.177.196.2")
        assert a.exec(f"ping -c 1 -W 20 {address}", timeout=SECONDS).status == 0
        assert b.exec(f"ping -c 1 -W 20 {a.vm.address}", timeout=SECONDS).status == 0
        received = b.exec("nc -l -p 5000 -e sh -c 'cat >/tmp/received'", timeout=SECONDS, wait=False)
        b.exec(listening(5000), check=True, timeout=SECONDS)
        b.gdb.breakpoint("tcp_v4_rcv")
        sent = a.exec(f"echo over the segment | nc {address} 5000", timeout=SECONDS, wait=False)
        stop = b.gdb.cont(timeout=SECONDS)
        assert (stop.reason, stop.frame.function) == ("breakpoint-hit", "tcp_v4_rcv")
        assert stop.frame.evaluate("skb->dev->name").string_() == "eth0"
        # The other end runs meanwhile.
        assert a.exec("uname", timeout=SECONDS).stdout == "Linux\n"
        b.gdb.delete_all()
        b.gdb.cont(wait=False)
        assert sent.result(timeout=SECONDS).status == 0
        assert received.result(timeout=SECONDS).status == 0
        assert b.exec("cat /tmp/received", timeout=SECONDS).stdout == "over the segment\n"
    assert not (runtime / "vmdebug").exists()


def test_a_clone_joins_the_segment_with_a_new_identity_only() -> None:
    with start(name="a", net=["user", "segment=lab"]) as a:
        a.exec("true", check=True, timeout=SECONDS)
        same, *_ = cloning.clone(a.vm, timeout=SECONDS)
        try:
            (other,) = json.loads(run("clone", "a", "--new-identity", "--json"))
            user, segment = other["net"]
            assert (user["kind"], user["address"]) == ("user", "10.0.2.15/24")
            assert (segment["kind"], segment["address"]) == ("segment", "10.177.196.2/24")
            look = "hostname; cat /sys/class/net/eth1/address"
            assert run("exec", "a-2", "--", look) == f"a-2\n{segment['mac']}\n"
            assert run("exec", "a-1", "--", look) == "vmdebug\n52:54:00:b1:c4:01\n"
            assert a.exec("ping -c 1 -W 20 10.177.196.2", timeout=SECONDS).status == 0
            # The copy has the addresses of a, and is not connected.
            assert same.exec("ping -c 1 -W 1 10.177.196.2", timeout=SECONDS).status == 1
            assert same.facts()["net"][1]["kind"] is None
        finally:
            run("stop", "a-1", "a-2")


def test_nothing_is_left_of_a_segment_whose_guests_are_killed(runtime: Path) -> None:
    facts = [json.loads(run("start", "--name", each, "--net", "segment=lab", "--json")) for each in "ab"]
    assert (runtime / "vmdebug/.segments/lab/hub.sock").exists()
    joins = hub(runtime)
    for each in facts:
        os.kill(each["pid"], signal.SIGKILL)
    assert [each["status"] for each in json.loads(run("status", "--json"))] == ["exited", "exited"]
    assert joins.wait(SECONDS)
    assert not (runtime / "vmdebug").exists()
