"""What the Ray launcher does without a Ray: it notices that one has gone."""

import socket
import threading

import pytest

from autoparallel.profiling.launcher import ClusterGoneError
from autoparallel.profiling.ray_calls import Calls
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
    launcher._calls = Calls(Head(address))
    with pytest.raises(ClusterGoneError, match="went away; run again to go on"):
        launcher.submit(None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_calls_are_answered_in_turn_and_raise_what_they_raise(head):
    calls = Calls(Head(head[1]))
    assert [calls(lambda i=i: i) for i in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="own"):
        calls(lambda: {}["own"])
    assert calls(lambda: "goes on") == "goes on"


def test_a_call_that_meets_a_head_as_it_dies_is_left_behind(head):
    server, address = head
    never = threading.Event()

    def call():
        server.close()
        never.wait(60)

    with pytest.raises(ClusterGoneError, match="went away"):
        Calls(Head(address), every_s=0.05)(call)
    never.set()


def test_what_a_call_says_of_a_head_that_has_gone_is_not_the_cause(head):
    server, address = head

    def call():
        server.close()
        raise RuntimeError("failed to connect to GCS")

    with pytest.raises(ClusterGoneError):
        Calls(Head(address))(call)


@pytest.mark.ray
@pytest.mark.slow
def test_another_ray_starts_after_a_launchers_own_in_the_same_process():
    ray = pytest.importorskip("ray")
    RayLauncher(ranks=1).close()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        assert ray.cluster_resources()["CPU"] > 0
    finally:
        ray.shutdown()
