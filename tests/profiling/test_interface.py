"""Ranks on several hosts: gloo is told by which interface they meet."""

import socket

import pytest

from autoparallel.profiling.worker import interface


def test_the_loopback_is_found_by_its_address_and_a_stranger_is_not():
    names = [name for _, name in socket.if_nameindex()]
    assert interface.interface_of("127.0.0.1") in names
    assert interface.interface_of("203.0.113.7") == ""


def test_ranks_of_one_host_are_left_alone():
    environment = {"MASTER_ADDR": "127.0.0.1"}
    interface.name_interface(environment)
    assert interface.VARIABLE not in environment


@pytest.mark.parametrize("told", ["", "ib0"])
def test_the_way_to_rank_0_is_told_unless_somebody_has_told_it(monkeypatch, told):
    monkeypatch.setattr(interface, "address_towards", lambda host: "10.0.0.7")
    monkeypatch.setattr(interface, "interface_of", lambda address: "eth7")
    environment = {"MASTER_ADDR": "10.0.0.1", interface.VARIABLE: told}
    interface.name_interface(environment)
    assert environment[interface.VARIABLE] == (told or "eth7")


def test_a_host_that_cannot_be_looked_up_changes_nothing():
    environment = {"MASTER_ADDR": "no-such-host.invalid"}
    interface.name_interface(environment)
    assert interface.VARIABLE not in environment
