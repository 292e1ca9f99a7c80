"""The bookkeeping of shards: whatever fails, every row is done once or given up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.actors.shards import Shard, ShardQueue, missing, redundant, shard_of


def test_a_file_bears_its_rows() -> None:
    shard = Shard(256, 512)
    assert shard.file == "part-000000256-000000512.parquet"
    assert shard_of(shard.file) == shard
    assert shard_of("part-00000.parquet") is None
    assert shard_of("evaluation.parquet") is None


@given(
    rows=st.integers(0, 60),
    size=st.integers(1, 20),
    written=st.lists(st.tuples(st.integers(0, 59), st.integers(1, 20)), max_size=8),
)
def test_missing_is_what_is_not_written(rows: int, size: int, written: list[tuple[int, int]]) -> None:
    there = [Shard(start, min(start + n, rows)) for start, n in written if start < rows]
    done = {i for shard in there for i in range(shard.start, shard.stop)}
    left = [i for shard in missing(there, rows, size) for i in range(shard.start, shard.stop)]
    assert left == sorted(set(range(rows)) - done)
    assert all(0 < len(shard) <= size for shard in missing(there, rows, size))


def test_a_shard_inside_another_is_redundant() -> None:
    whole, half, other = Shard(0, 8), Shard(4, 8), Shard(8, 12)
    assert redundant([half, other, whole]) == [half]
    assert redundant([Shard(0, 4), half, other]) == []


@given(
    rows=st.integers(1, 40),
    size=st.integers(1, 16),
    attempts=st.integers(1, 4),
    poison=st.sets(st.integers(0, 39), max_size=5),
    deaths=st.lists(st.booleans(), max_size=60),
)
def test_every_row_is_done_once_or_given_up_if_it_is_at_fault(
    rows: int, size: int, attempts: int, poison: set[int], deaths: list[bool]
) -> None:
    """Poisonous rows raise; besides, engines die now and then whatever they work on."""
    queue = ShardQueue(missing([], rows, size), attempts=attempts)
    chance = iter(deaths)
    done: list[int] = []
    given_up: list[int] = []
    died_alone: set[int] = set()
    steps = 0
    while queue:
        steps += 1
        assert steps < 2000
        shard = queue.take()
        covered = range(shard.start, shard.stop)
        dies = next(chance, False)
        if dies or poison.intersection(covered):
            if dies and len(shard) == 1:
                died_alone.add(shard.start)
            if queue.failed(shard, engine_died=dies):
                given_up.append(shard.start)
        else:
            done += covered
    assert sorted(done + given_up) == list(range(rows))
    assert poison.intersection(range(rows)) <= set(given_up)
    assert set(given_up) <= poison | died_alone


def test_an_innocent_shard_whose_engine_died_is_tried_whole_once_more() -> None:
    queue = ShardQueue([Shard(0, 8)])
    assert not queue.failed(queue.take(), engine_died=True)
    again = queue.take()
    assert (again.start, again.stop) == (0, 8)
    assert not queue.failed(again, engine_died=True)
    assert [len(queue.take()), len(queue.take())] == [4, 4]


def test_another_shard_goes_before_a_second_attempt_and_halves_are_of_one_family() -> None:
    """Whether the next engine dies too, on other questions, says whose fault it was."""
    queue = ShardQueue([Shard(0, 8), Shard(8, 16), Shard(16, 24)])
    assert not queue.failed(queue.take(), engine_died=True)
    assert [shard.start for shard in queue.waiting] == [8, 0, 16]
    queue.take()
    again = queue.take()
    assert not queue.failed(again, engine_died=True)
    halves = [queue.take(), queue.take()]
    assert [(half.start, half.stop, half.family) for half in halves] == [(0, 4, 0), (4, 8, 0)]
    assert not queue.failed(halves[1], engine_died=True)
    assert {queue.take().family for _ in range(2)} == {0}
