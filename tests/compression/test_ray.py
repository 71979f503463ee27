"""Compression on a Ray cluster of two nodes of this machine, one of which is killed."""

import subprocess
import sys
import time

import pytest

pytest.importorskip("ray", reason="the extra [ray] is not installed")

OPTIONS = ["--recovery-steps", "6", "--bits", "5", "--calibration-tokens", "4096"]
OPTIONS += ["--features", "original"]  # blocks that need not wait for one another


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def command(model, out, text, *more):
    words = ["compress", model, "--output", out, "--calibration", text, *OPTIONS, *more]
    return [sys.executable, "-m", "nwc", *map(str, words)]


@pytest.mark.filterwarnings("ignore")
def test_two_nodes_one_killed(llama, text, tmp_path):
    from ray.cluster_utils import Cluster

    subprocess.run(command(llama, tmp_path / "expected", text), check=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        run = subprocess.Popen(
            command(llama, tmp_path / "out", text, "--ray", cluster.address),
            stderr=subprocess.PIPE,
        )
        groups = tmp_path / "out.work" / "units"
        # The first unit runs alone; when a group of another is finished, both nodes work.
        while run.poll() is None and not list(groups.glob("0000[12]/group-*.safetensors")):
            time.sleep(0.01)
        assert run.poll() is None
        cluster.remove_node(second, allow_graceful=False)
        said = run.communicate(timeout=120)[1].decode()
        assert run.returncode == 0, said
    finally:
        cluster.shutdown()
    assert content(tmp_path / "out") == content(tmp_path / "expected")


def test_no_cluster(nwc_error, llama, text, tmp_path):
    said = nwc_error(command(llama, tmp_path / "out", text, "--ray", "127.0.0.1:1"))
    assert "no Ray cluster at 127.0.0.1:1" in said


@pytest.fixture
def nwc_error():
    def call(words):
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        return done.stderr

    return call
