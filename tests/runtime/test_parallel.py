import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from compiled_programs import run_on_devices
from ml_collections import ConfigDict

from detr_jax.errors import UserError
from detr_jax.runtime import parallel
from detr_jax.weights.runs import load_params

ON_FOUR_DEVICES = """
import json
import jax, jax.numpy as jnp, numpy as np
from detr_jax.runtime import parallel

double = parallel.per_device(lambda x: 2 * x)
batch = np.arange(16, dtype=np.float32).reshape(8, 2)
on_devices = parallel.shard(batch)
doubled = double(double(on_devices))
copies = double(parallel.replicate(np.float32([[1, 2], [3, 4]])))
parts = parallel.shards(doubled)
halves = parallel.per_device(lambda x: x.sum(), jax.local_devices()[2:])(
    parallel.shard(batch, jax.local_devices()[2:])
)
print(json.dumps({
    "layouts": [doubled.sharding == on_devices.sharding, doubled.sharding == copies.sharding],
    "parts": [np.asarray(part)[0].tolist() for part in parts],
    "batch": parallel.on_host(doubled).tolist(),
    "devices": [[device.id for device in part.devices()] for part in parts],
    "first": parallel.unreplicate({"x": doubled})["x"].tolist(),
    "halves": [[part.tolist(), [d.id for d in part.devices()]] for part in parallel.shards(halves)],
}))
"""


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    output, programs = run_on_devices(ON_FOUR_DEVICES, 4, tmp_path_factory.mktemp("hlo"))
    return json.loads(output), programs


def test_arrays_have_the_layout_of_results_so_programs_compile_once(four_devices):
    found, programs = four_devices
    assert found["layouts"] == [True, True]
    # `double` runs on a sharded and a replicated array and on a result, all of one shape.
    assert [program.devices for program in programs if program.name == "jit__fun"] == [4, 2]


def test_shards_stay_on_their_devices(four_devices):
    found, programs = four_devices
    batch = 4 * np.arange(16.0).reshape(4, 2, 2)
    assert found["parts"] == batch.tolist()
    assert found["devices"] == [[0], [1], [2], [3]]
    assert found["first"] == batch[0].tolist()
    assert found["halves"] == [[[28.0], [2]], [[92.0], [3]]]
    assert found["batch"] == batch.reshape(8, 2).tolist()
    assert not any(program.collectives for program in programs)
    assert not any(program.devices > 1 for program in programs if program.name != "jit__fun")


def test_indexing_an_array_of_several_devices_gathers_it(tmp_path):
    """Tests that find no collective rely on this one being found."""
    code = """
import numpy as np
from detr_jax.runtime import parallel
parallel.shard(np.arange(8.0, dtype=np.float32))[0].block_until_ready()
"""
    _, programs = run_on_devices(code, 4, tmp_path)
    assert any(program.collectives and program.devices == 4 for program in programs)


def test_unreplicated_numbers_are_arrays():
    """Orbax restores arrays of rank 0, but rejects NumPy's scalars."""
    number = parallel.unreplicate(parallel.replicate(np.int32(3)))
    assert isinstance(number, np.ndarray) and number.shape == () and number == 3


def test_unreplicated_arrays_keep_their_values_when_the_originals_are_donated():
    """Checkpoints are written in the background while the next step reuses the memory of its arguments."""
    add = parallel.per_device(lambda x: x + 1, donate_argnums=(0,))
    on_devices = add(parallel.replicate(np.zeros(1000, np.float32)))
    copy = parallel.unreplicate(on_devices)
    for _ in range(3):
        on_devices = add(on_devices)
    on_devices.block_until_ready()
    assert (copy == 1).all() and (parallel.unreplicate(on_devices) == 4).all()


def test_rejects_batches_that_are_not_divisible():
    with pytest.raises(
        UserError, match="5 images cannot be divided among 1 devices in 2 parts.*multiples of 2"
    ):
        parallel.shard(np.zeros((5, 3)), parts=2)


def test_one_process_connects_to_nothing_and_gathers_its_own_value():
    parallel.connect(ConfigDict({"coordinator": ""}))
    assert parallel.gather({"a": 1}) == [{"a": 1}]
    assert parallel.max_over_processes(7) == 7


def test_rejects_an_environment_without_a_cluster(monkeypatch):
    def initialize(*given, **named):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(UserError, match="coordinator_address.*coordinator=HOST:PORT"):
        parallel.connect(ConfigDict({"coordinator": "auto"}))


TWO_PROCESSES = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from configs.shapes import get_config
from detr_jax.runtime import parallel
from detr_jax.training.loop import train
config = get_config("joint")
config.init_from = "shapes-panoptic"  # a trained model, whose panoptic quality is not zero
config.batch_size = config.eval.batch_size = 4
config.data.train_count, config.data.eval_count = 12, 9  # three batches; two and a quarter
config.steps, config.log_every_steps, config.eval.every_epochs, config.eval.pictures = 5, 1, 10.0, 0
config.pair_lengths = (8,)
config.distributed.coordinator = sys.argv[2]
config.distributed.processes, config.distributed.process = int(sys.argv[3]), int(sys.argv[4])
parallel.connect(config.distributed)
train(config, sys.argv[1])
"""


def start(workdir, devices, coordinator="", processes=1, process=0):
    flags = os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={devices}"
    arguments = [str(workdir), coordinator, str(processes), str(process)]
    return subprocess.Popen(
        [sys.executable, "-c", TWO_PROCESSES, *arguments],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_with_two_devices_each_equal_one_device(tmp_path):
    coordinator = f"localhost:{free_port()}"
    runs = [start(tmp_path / "two", 2, coordinator, 2, process) for process in (0, 1)]
    outputs = [run.communicate(timeout=400) for run in runs]
    runs.append(start(tmp_path / "one", 1))
    outputs.append(runs[-1].communicate(timeout=400))
    for run, (_, errors) in zip(runs, outputs, strict=True):
        assert run.returncode == 0, errors[-3000:]
    assert "on 4 cpu devices" in outputs[0][0] and "step 5/5" in outputs[0][0]
    assert not any(word in outputs[1][0] for word in ("stage", "step", "PQ"))  # process 1 is silent

    two, one = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert len(two) == len(one) == 6  # five steps and an evaluation
    steps_with_other_gradients = set()
    for a, b in zip(two, one, strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        for name in (name for name in a if not name.startswith(("images_per_second", "seconds_"))):
            if name.startswith("gradient_norm") and not np.isclose(a[name], b[name], rtol=2e-4, atol=2e-5):
                steps_with_other_gradients.add(a["step"])
                np.testing.assert_allclose(a[name], b[name], rtol=2e-3, err_msg=name)
            else:
                np.testing.assert_allclose(a[name], b[name], rtol=2e-4, atol=2e-5, err_msg=name)
    # In step 3, a corner of a predicted box is within rounding of its target's. There, the generalized IoU
    # has a kink, so rounding decides its gradient.
    assert steps_with_other_gradients <= {3}
    assert one[-1]["val_pq_all"] > 0.3
    two_params, one_params = load_params(tmp_path / "two"), load_params(tmp_path / "one")
    for a, b in zip(jax.tree.leaves(two_params), jax.tree.leaves(one_params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
CONNECT = """
import sys
import jax
from ml_collections import ConfigDict
from detr_jax.runtime import parallel

parallel.connect(ConfigDict({"coordinator": sys.argv[1], "processes": 1, "process": 0}))
print(jax.process_count(), jax.config.values["jax_cuda_visible_devices"])
"""


def connect_under_slurm(coordinator, **environment):
    command = [sys.executable, "-c", CONNECT, coordinator]
    return subprocess.run(
        command, env={**os.environ, **SLURM, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("tasks", "visible"),
    [({"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, "all"), ({}, "0"), ({"SLURM_STEP_TASKS_PER_NODE": "8"}, "0")],
)
def test_a_process_alone_on_its_host_uses_all_devices(tasks, visible):
    port = str(free_port())
    for coordinator in ("auto", f"localhost:{port}"):
        done = connect_under_slurm(coordinator, JAX_COORDINATOR_PORT=port, **tasks)
        assert done.stdout.split() == ["1", visible], done.stderr[-2000:]


def test_a_port_in_use_is_named():
    with socket.socket() as listening:
        listening.bind(("", 0))
        listening.listen()
        done = connect_under_slurm(f"localhost:{listening.getsockname()[1]}")
    assert "cannot listen there ([Errno 98] Address already in use): choose a free port" in done.stderr
