"""What the kernel knows about sockets, with real ones."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vmdebug import sockets
from vmdebug.debugger import clients
from vmdebug.errors import StateError


def test_a_listening_socket_is_known_by_its_path_also_after_the_file_was_removed(runtime: Path) -> None:
    path = runtime / "with a blank.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.unlink()
        found = [each for each in sockets.unix_sockets() if each.path == str(path)]
        assert [each.connected for each in found] == [False]
        assert sockets.holder(found[0].inode) == os.getpid()
        assert sockets.clients(str(path)) == []


def test_the_client_of_a_unix_socket_is_found(runtime: Path) -> None:
    path = str(runtime / "gdb.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)
        with server.accept()[0]:
            assert sockets.clients(path) == [os.fstat(client.fileno()).st_ino]
            with pytest.raises(StateError, match=f"pid {os.getpid()} "):
                clients.check_free(path, "v")
            client.close()
            clients.check_free(path, "v")


def test_the_client_of_a_tcp_port_is_found() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        clients.check_free(endpoint, "v")
        client.connect(server.getsockname())
        with server.accept()[0], pytest.raises(StateError, match=f"pid {os.getpid()} "):
            clients.check_free(endpoint, "v")


def test_a_socket_that_nobody_has_open_has_no_holder() -> None:
    assert sockets.holder(2**40) == 0
