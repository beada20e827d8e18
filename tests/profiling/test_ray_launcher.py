"""What the Ray launcher does without a Ray: it notices that one has gone."""

import socket

import pytest

from autoparallel.profiling.launcher import ClusterGoneError
from autoparallel.profiling.ray_head import Head
from autoparallel.profiling.ray_launcher import RayLauncher


@pytest.fixture
def head():
    """A port that answers until it is closed, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server, f"127.0.0.1:{server.getsockname()[1]}"


def test_a_head_that_answers_is_there_and_one_that_does_not_has_gone_for_good(head):
    server, address = head
    watched = Head(address)
    assert watched.answers(0.0)
    server.close()
    assert watched.answers(3600.0)  # somebody answered less than an hour ago
    assert not watched.answers(0.0)
    assert watched.gone
    assert not watched.answers(3600.0)


def test_without_its_head_a_launcher_raises_before_it_asks_ray_anything(head, tmp_path):
    server, address = head
    server.close()
    launcher = RayLauncher.__new__(RayLauncher)
    launcher._head = Head(address)
    with pytest.raises(ClusterGoneError, match="went away; run again to go on"):
        launcher.submit(None, tmp_path)
    assert list(tmp_path.iterdir()) == []
