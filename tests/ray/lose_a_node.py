"""A cluster loses a node while two engines sample, one on each, and gets another one later, where a third engine joins them:
python -m tests.ray.lose_a_node POOL OUT. Prints what came of it."""

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
from ka2l_ray.store.artefacts import Artefact
from tests.ray.sampling import sampled


def main(pool: str, out: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="error")
    here = ray.get_runtime_context().get_node_id()  # a driver ends with the node that it joined
    lost = next(node for node in nodes if node.node_id != here)
    engines = Engines(EngineConfig(replicas=3, shard_size=2, placement_timeout=60))

    done: list[Artefact] = []

    def work() -> None:
        questions = Inputs(f"{out}.inputs").questions(pool)
        done.append(sampled(Path(out), questions, SamplingConfig(k=500, max_tokens=8), engines))

    working = threading.Thread(target=work)
    working.start()  # nodes come and go in the main thread alone
    try:
        while engines.loads < 2:
            time.sleep(0.02)
        cluster.remove_node(lost, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        working.join()
        rows = done[0].storage.read_table("")
        print(f"rows {len(set(rows['question_id'].to_pylist()))} of {len(rows)}, engines {engines.loads}")
    finally:
        engines.release()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
