"""A real Ray cluster on this machine: order, errors, and that nothing outside hears of it."""

import contextlib
import gc
import os
import sys
import time

import pytest
from ehr_core.errors import ConfigError, DataError, EhrError
from ehr_ray.executor import Ray
from ehr_ray.plugin import RayConfig


def slow_square(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return number * number


def process_of(number: int) -> int:
    time.sleep(0.3)
    return os.getpid()


def refuse(number: int) -> int:
    if number == 3:
        raise DataError("shard 3, row 7: subject_id is null")
    return number


def divide(number: int) -> float:
    return 1 / number


def die(number: int) -> int:
    if number == 1:
        os._exit(9)
    return number


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One cluster for all tests of this file, as starting one takes seconds."""
    executor = Ray(RayConfig(num_cpus=2))
    ray = executor._connected()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import a test
    yield ray
    ray.shutdown()


def test_results_keep_the_order_of_the_items():
    assert list(Ray(RayConfig()).map(slow_square, range(20))) == [n * n for n in range(20)]


def test_work_is_done_by_other_processes_at_the_same_time():
    found = set(Ray(RayConfig(num_cpus=2)).map(process_of, range(6)))
    assert os.getpid() not in found
    assert len(found) == 2


def test_the_cluster_outlives_an_executor_for_the_sake_of_the_others(cluster):
    cluster.shutdown()
    first = Ray(RayConfig(num_cpus=2))
    assert list(first.map(abs, [-1])) == [1]
    results = Ray(RayConfig(num_cpus=2)).map(slow_square, range(6))
    assert next(results) == 0
    del first
    gc.collect()
    assert list(results) == [1, 4, 9, 16, 25]


def test_no_items_need_no_cluster(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(Ray(RayConfig()).map(slow_square, [])) == []


def test_an_error_for_users_comes_out_as_it_is_and_names_its_item():
    with pytest.raises(DataError) as caught:
        list(Ray(RayConfig()).map(refuse, range(6)))
    assert str(caught.value) == "shard 3, row 7: subject_id is null"
    assert caught.value.__notes__ == ["while working on 3"]


def test_any_other_error_keeps_its_type_and_names_its_item():
    with pytest.raises(ZeroDivisionError) as caught:
        list(Ray(RayConfig()).map(divide, [1, 2, 0]))
    assert caught.value.__notes__ == ["while working on 0"]


def test_a_worker_that_dies_is_an_error_that_names_the_item():
    with pytest.raises(EhrError, match=r"a Ray worker failed at 1: .*fewer executor.num_cpus"):
        list(Ray(RayConfig()).map(die, range(3)))


def test_the_cluster_listens_to_this_machine_only_and_has_no_dashboard(cluster):
    import psutil  # Ray brings it

    places = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # ended just now, or another user's
            if process.name() not in ("raylet", "gcs_server"):
                continue
            found = process.net_connections(kind="inet")
            places += [connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN]
    assert places
    assert {place.removeprefix("::ffff:") for place in places} <= {"127.0.0.1", "::1"}
    assert not cluster._private.worker.get_dashboard_url()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="num_cpus is 0"):
        Ray(RayConfig(num_cpus=0))


def test_a_cluster_that_is_not_there_is_one_line(cluster, monkeypatch):
    def init(address, **options):
        assert address == "auto"
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify one.")

    monkeypatch.setattr(cluster, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "init", init)
    with pytest.raises(EhrError, match=r"no Ray cluster auto: Could not find any running Ray instance\.; see"):
        list(Ray(RayConfig(address="auto")).map(abs, [1]))


def test_tokens_are_the_same_with_ray_as_without(tmp_path):
    command = pytest.importorskip("ehr_tokenize.plugin", reason="ehr-tokenize is not installed beside")
    assert command
    from ehr_core.cli import run
    from ehr_core.formats.folder import file_digests

    common = ["source.num_subjects=60", "source.shard_subjects=10"]
    run("ehr-tokenize", "tokenize", [*common, f"output={tmp_path}/serial"])
    run("ehr-tokenize", "tokenize", [*common, f"output={tmp_path}/ray", "executor=ray", "executor.num_cpus=2"])
    assert file_digests(tmp_path / "serial") == file_digests(tmp_path / "ray")
    assert (tmp_path / "serial" / "manifest.json").read_bytes() == (tmp_path / "ray" / "manifest.json").read_bytes()
