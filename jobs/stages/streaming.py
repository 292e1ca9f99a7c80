"""A read -> map -> write pass of Ray Data over a fixed pool of actors; it goes on at the row where an earlier attempt ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig

from ka2l_ray.errors import UserError
from ka2l_ray.store.storage import Storage

SECONDS_BETWEEN_LOOKS = 2.0
MAX_RESTARTS = 32  # of one worker; Ray Data would start one that always dies again for ever


def map_rows(
    source: Storage,
    target: Storage,
    *,
    worker: type,
    arguments: tuple[Any, ...],
    columns: list[str],
    actors: int,
    cpus: float,
    gpus: float,
    rows_per_block: int,
    checkpoint: Storage,
    excluded: int = 0,
    on_file: Callable[[str], None] | None = None,
) -> None:
    """Every row of ``source``'s Parquet files through ``worker(*arguments)`` into ``target``.

    No row passes through this process. Rows written by an earlier attempt (``checkpoint``) are not computed again.

    Args:
        worker: a class; its instances take and give Arrow tables.
        rows_per_block: the unit of work, of memory and of resume.
        excluded: rows of ``source`` that the worker leaves out.
        on_file: told each file of ``target`` within seconds of its writing, in a thread of its own.

    Raises:
        UserError: rows are missing from ``target``.
    """
    context = DataContext.get_current()
    before = context.checkpoint_config
    context.checkpoint_config = CheckpointConfig(
        id_column="question_id", checkpoint_path=checkpoint.url(), delete_checkpoint_on_success=False
    )
    try:
        rows = ray.data.read_parquet([source.url(file) for file in source.parquet_files()], columns=columns)
        rows = rows.repartition(target_num_rows_per_block=rows_per_block)
        mapped = rows.map_batches(
            worker,
            fn_constructor_args=arguments,
            batch_size=rows_per_block,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
        )
        with _told(target, on_file):
            mapped.write_parquet(target.url(), compression="zstd")
    finally:
        context.checkpoint_config = before
    wanted, written = source.count_rows() - excluded, target.count_rows()
    if wanted != written:
        raise UserError(
            f"{target.url()}: {written} rows are here, {wanted} were to be written; "
            "the output must lie on storage that all nodes share"
        )


@contextmanager
def _told(target: Storage, on_file: Callable[[str], None] | None) -> Iterator[None]:
    """Tell ``on_file`` of the files that appear in ``target``."""
    ended = threading.Event()

    def watch() -> None:
        assert on_file is not None
        told: set[str] = set()
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            for file in set(target.parquet_files()) - told:
                try:
                    on_file(file)
                except (pa.ArrowException, OSError):  # still being written
                    continue
                told.add(file)

    if on_file is None:
        yield
        return
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
