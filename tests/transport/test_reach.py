"""Which of several servers is there."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from drengine.config import Address
from drengine.failover.config import OrchestratorConfig
from drengine.transport.reach import first_reached


def test_the_first_that_takes_a_connection_is_chosen(tmp_path: Path) -> None:
    path = str(tmp_path / "nbd.sock")
    with socket.create_server(("127.0.0.1", 0)) as gone:
        dead = Address("127.0.0.1", gone.getsockname()[1])
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket(socket.AF_UNIX) as local:
        alive = Address("127.0.0.1", there.getsockname()[1])
        local.bind(path)
        local.listen()
        assert first_reached([dead, alive]) == alive
        assert first_reached([alive, dead]) == alive
        assert first_reached([dead, Address(path=path)]) == Address(path=path)
        with pytest.raises(ConnectionRefusedError):  # the first one's reason
            first_reached([dead, Address(path=path + ".not")])
        config = OrchestratorConfig(store=tmp_path, state=tmp_path, export=(dead, alive))
        assert config.exporting()("shop", "data", 2, "") == f"nbd://{alive}/shop/data%232"
        nobody = replace(config, export=(dead, Address(path=path + ".not")))
        assert nobody.exporting()("shop", "data", 2, "") == f"nbd://{dead}/shop/data%232", "named by what then fails"
