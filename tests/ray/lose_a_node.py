"""A cluster loses a node while two engines sample, one on each: python -m tests.ray.lose_a_node POOL OUT. Prints what remains."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from ka2l_ray.actors.engines import Engines
from ka2l_ray.config import EngineConfig, SamplingConfig
from ka2l_ray.jobs.commands.inputs import Inputs
from tests.ray.sampling import sampled


def main(pool: str, out: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="error")
    here = ray.get_runtime_context().get_node_id()  # a driver ends with the node that it joined
    lost = next(node for node in nodes if node.node_id != here)
    engines = Engines(EngineConfig(replicas=2, shard_size=8, placement_timeout=8))

    def lose() -> None:
        while len(list(Path(out).parent.glob("samples.partial-*/part-*.parquet"))) < 2:
            time.sleep(0.02)
        cluster.remove_node(lost, allow_graceful=False)

    threading.Thread(target=lose, daemon=True).start()
    try:
        done = sampled(Path(out), Inputs(f"{out}.inputs").questions(pool), SamplingConfig(k=2, max_tokens=8), engines)
        rows = done.storage.read_table("")
        print(f"rows {len(set(rows['question_id'].to_pylist()))} of {len(rows)}, engines left {len(engines.replicas)}")
    finally:
        engines.release()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
