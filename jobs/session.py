"""The Ray cluster of a run: the one it is told of, else a local one that ends with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import ray.data
import torch

import ka2l_ray
from ka2l_ray.actors.placement import Bundle, cluster_nodes
from ka2l_ray.errors import UserError

logger = logging.getLogger(__name__)

# A driver needs a model actor, the workers of one stage and that stage's readers side by side, even on two cores.
LEAST_CPUS_PER_DRIVER = 3
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
# Processes that Ray starts for large clusters, at two seconds of processor time each: a pass of Ray Data has 32 readers of
# Parquet footers unless told otherwise, and a training a watcher for machines that are about to be taken away.
FEWER_PROCESSES = {"RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
LOCAL_CLUSTER = "KA2L_RAY_LOCAL_CLUSTER"  # its address, for commands started beside it: they share its environment


@contextmanager
def ray_session(address: str | None, *, drivers: int = 1, use_gpu: bool = False) -> Iterator[None]:
    """Join the cluster at ``address`` or in RAY_ADDRESS, or start a local one; leave it at the end.

    Args:
        drivers: how many runs a local cluster is to hold at once.
        use_gpu: without it workers see no GPU, as Ray would show them all of them.

    Raises:
        UserError: nothing answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    cpus = max(os.cpu_count() or 1, LEAST_CPUS_PER_DRIVER * drivers)
    with _joined(address, use_gpu) if address else _started(cpus, use_gpu):
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        yield


def supply(address: str | None) -> list[Bundle]:
    """CPUs and GPUs of each node that a session at ``address`` would have, seen before it begins.

    Raises:
        UserError: nothing answers at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        return cluster_nodes()
    if address is None or address == os.environ.get(LOCAL_CLUSTER):
        return [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]
    with _joined(address, use_gpu=True):
        return cluster_nodes()


@contextmanager
def _joined(address: str, use_gpu: bool) -> Iterator[None]:
    beside = address == os.environ.get(LOCAL_CLUSTER)
    environment = None if beside else {"env_vars": _worker_environment(use_gpu)}
    try:
        ray.init(address=address, runtime_env=environment, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster at {address} ({str(error).splitlines()[0]}); start one, or leave ray_address out"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _started(cpus: int, use_gpu: bool) -> Iterator[None]:
    """A local cluster. Its workers take this process's environment: with a runtime_env none that Ray starts ahead would do."""
    variables = {**_worker_environment(use_gpu), **FEWER_PROCESSES}
    before = {name: os.environ.get(name) for name in (*variables, LOCAL_CLUSTER)}
    os.environ.update(variables)
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
        os.environ[LOCAL_CLUSTER] = ray.get_runtime_context().gcs_address
        yield
    finally:
        ray.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _worker_environment(use_gpu: bool) -> dict[str, str]:
    """Workers on this machine find this very package, installed or not; other nodes need it installed, or a working_dir."""
    home = str(Path(ka2l_ray.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return environment if use_gpu else {**environment, "CUDA_VISIBLE_DEVICES": ""}
