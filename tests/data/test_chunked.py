"""Work on chunks of a table: in order, on every core, never twice, and ended however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from textwrap import dedent

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.misbehave import misbehave
from tagger.core.errors import TaggerError
from tagger.core.location import Location
from tagger.data import chunked
from tagger.system import scratch

STAGES = Path(__file__).parents[2] / "stages"
_DEADLINE = 60  # seconds until a test gives up; none is claimed to need them

Start = Callable[..., subprocess.Popen[str]]


def plus(chunk: pa.Table, *, number: int, log: str) -> pa.Table:
    """Add to every value, and leave a mark of having done so."""
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(f"{chunk['value'].to_pylist()} + {number}\n")
    return pa.table({"sum": [value + number for value in chunk["value"].to_pylist()]})


def unchanged(chunk: pa.Table) -> pa.Table:
    return chunk


def dies(chunk: pa.Table) -> pa.Table:
    if chunk["value"][0].as_py() == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return chunk


def mistaken(chunk: pa.Table) -> pa.Table:
    raise TaggerError(f"chunk {chunk['value'].to_pylist()} is a mistake")


def values(*chunks: int | list[int]) -> list[pa.Table]:
    return [pa.table({"value": [c] if isinstance(c, int) else c}) for c in chunks]


def sums(results: Iterator[pa.Table]) -> list[list[int]]:
    return [result["sum"].to_pylist() for result in results]


def names(locations: Iterable[Location], *, log: str) -> pa.Table:
    """Return the names of images; one named "die" kills its process, one named "hang" hangs."""
    paths = []
    for location in locations:
        misbehave(location.path)
        paths.append(location.path)
    with Path(log).open("a", encoding="utf-8") as file:
        file.write("done\n")
    nothing = pa.nulls(len(paths), pa.string())
    return pa.table({"name": paths, "reason": nothing, "detail": nothing})


def images(*paths: str) -> pa.Table:
    zeros = np.zeros(len(paths), np.int64)
    shards = pa.nulls(len(paths), pa.string())
    return pa.table({"file": list(paths), "shard": shards, "offset": zeros, "size": zeros})


@pytest.mark.parametrize("chunks", [[], values([1, 2])])
def test_a_single_chunk_is_worked_on_in_this_process(chunks: list[pa.Table]) -> None:
    here = partial(lambda chunk: chunk.append_column("process", pa.array([os.getpid()] * 2)))
    results = list(chunked.map_chunks(here, chunks))
    assert [set(result["process"].to_pylist()) for result in results] == [{os.getpid()}] * len(
        chunks
    )


@pytest.mark.parametrize("chunks", [values([1, 2]), values([1, 2], 3, [4])])
def test_finished_chunks_are_not_worked_on_again(tmp_path: Path, chunks: list[pa.Table]) -> None:
    log, memory = tmp_path / "log", tmp_path / "memory"
    add = partial(plus, number=10, log=str(log))
    first = sums(chunked.map_chunks(add, chunks, memory))
    assert first == [[v + 10 for v in chunk["value"].to_pylist()] for chunk in chunks]
    done = log.read_text()
    assert len(done.splitlines()) == len(chunks)
    assert sums(chunked.map_chunks(add, chunks, memory)) == first
    assert log.read_text() == done
    scratch.remove_folder(memory)
    assert not memory.exists()
    assert sums(chunked.map_chunks(add, chunks, memory)) == first
    assert len(log.read_text().splitlines()) == 2 * len(chunks)


def test_chunks_are_worked_on_again_without_a_memory(tmp_path: Path) -> None:
    log = tmp_path / "log"
    add = partial(plus, number=1, log=str(log))
    for _ in range(2):
        assert sums(chunked.map_chunks(add, values(5))) == [[6]]
    assert len(log.read_text().splitlines()) == 2


def test_other_settings_and_other_chunks_are_not_confused(tmp_path: Path) -> None:
    log, memory = str(tmp_path / "log"), tmp_path / "memory"
    for number in (1, 2, 11):
        for chunk in (1, [1, 1], [11], 2):
            add = partial(plus, number=number, log=log)
            (result,) = sums(chunked.map_chunks(add, values(chunk), memory))
            assert result == [v + number for v in ([chunk] if isinstance(chunk, int) else chunk)]
    assert len(Path(log).read_text().splitlines()) == 12


columns = st.lists(
    st.tuples(st.none() | st.text(max_size=4), st.none() | st.integers(0, 3)), max_size=12
)


def table(rows: list[tuple[str | None, int | None]]) -> pa.Table:
    schema = pa.schema({"name": pa.string(), "size": pa.int64()})
    return pa.Table.from_pylist([{"name": n, "size": s} for n, s in rows], schema=schema)


@given(columns, columns)
def test_a_chunk_key_is_that_of_the_values_and_of_the_settings(
    rows: list[tuple[str | None, int | None]], others: list[tuple[str | None, int | None]]
) -> None:
    work, other = partial(plus, number=1, log=""), partial(plus, number=2, log="")
    key = chunked.chunk_key(work, table(rows))
    in_two = pa.concat_tables([table(rows[:3]), table(rows[3:])])
    assert chunked.chunk_key(work, in_two) == key
    assert (chunked.chunk_key(work, table(others)) == key) == (rows == others)
    assert chunked.chunk_key(other, table(rows)) != key
    assert chunked.chunk_key(partial(unchanged), table(rows)) != key


@given(st.lists(st.integers(0, 9)), st.integers(1, 7))
def test_chunks_are_the_table_cut_up(numbers: list[int], rows: int) -> None:
    chunks = list(chunked.split_rows(pa.table({"value": pa.array(numbers, pa.int64())}), rows))
    assert [value for chunk in chunks for value in chunk["value"].to_pylist()] == numbers
    assert all(len(chunk) == rows for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= rows for chunk in chunks)


def test_a_process_that_dies_of_a_chunk_is_one_clear_line() -> None:
    with pytest.raises(TaggerError, match=r"A process was killed in dies.*Run again"):
        list(chunked.map_chunks(partial(dies), values(*range(6))))


def test_a_mistake_found_in_a_worker_is_reported_here() -> None:
    with pytest.raises(TaggerError, match=r"chunk \[0\] is a mistake"):
        list(chunked.map_chunks(partial(mistaken), values(*range(6))))


@pytest.mark.parametrize("more", [[], [images("z")]])
def test_an_image_that_kills_or_hangs_its_worker_costs_its_own_row(
    tmp_path: Path, more: list[pa.Table]
) -> None:
    chunks = [images("a", "die", "b", "hang", "c"), *more]
    log, memory = tmp_path / "log", tmp_path / "memory"
    work = partial(names, log=str(log))
    lost = "unreadable image"
    for _ in range(2):
        first, *_ = chunked.map_images(work, chunks, memory, timeout=1.0)
        assert first["name"].to_pylist() == ["a", None, "b", None, "c"]
        assert first["reason"].to_pylist() == [None, lost, None, lost, None]
        details = first["detail"].to_pylist()
        assert details[1] == "its process was killed, perhaps by a lack of memory"
        assert details[3] == "took more than 1 seconds"
    assert len(log.read_text().splitlines()) == len(chunks)


SCRIPT = """
    import os, sys, threading, time
    from functools import partial
    from pathlib import Path

    import pyarrow as pa

    from tagger.core import errors, files
    from tagger.data import chunked
    from tagger.system.prefetch import prefetch


    def slowly(chunk, *, folder):
        number = chunk["value"][0].as_py()
        Path(folder, f"started-{os.getpid()}-{number}").touch()
        with files.atomic_write(Path(folder, f"{number}.result")) as partial_file:
            partial_file.write_bytes(b"half")
            stop = Path(folder, "stop_at")
            if stop.exists() and number >= int(stop.read_text()):
                while True:
                    time.sleep(0.01)
            partial_file.write_bytes(b"whole")
        return chunk


    def main():
        chunks = (pa.table({"value": [number]}) for number in range(12))
        stop = threading.Event()
        work = partial(slowly, folder=".")
        results = chunked.map_chunks(work, chunks, Path("memory"), stop)
        if "ahead" in sys.argv:
            results = prefetch(results, stop=stop)
        taken = []
        for result in results:
            taken.append(result["value"][0].as_py())
            if "busy" in sys.argv:
                time.sleep(600)
        print(*taken)


    if __name__ == "__main__":
        with errors.exit_on_error():
            main()
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Start]:
    """Start a program that hangs in the chunk named in the file stop_at, and in those after it."""
    (tmp_path / "script.py").write_text(dedent(SCRIPT))
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "script.py", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(STAGES)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until(condition: Callable[[], object]) -> None:
    for _ in range(_DEADLINE * 50):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came about")


def stuck(folder: Path, first: int) -> Callable[[], bool]:
    """Return whether workers hang in a chunk, and all chunks before it are done."""
    return lambda: (
        (folder / f".{first}.result.partial").exists()
        and len(list((folder / "memory").glob("[!.]*"))) == first
    )


def session(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes of a session, by what the kernel says of each."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == process.pid and fields[0] != "Z":
            pids.append(int(stat.parent.name))
    return pids


def test_a_killed_run_goes_on_where_it_was_and_leaves_no_process(
    tmp_path: Path, script: Start
) -> None:
    (tmp_path / "stop_at").write_text("5")
    killed = script()
    until(stuck(tmp_path, 5))
    assert len(session(killed)) > 2
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    until(lambda: not session(killed))
    before = set(tmp_path.glob("started-*"))
    (tmp_path / "stop_at").unlink()
    out, err = script().communicate(timeout=_DEADLINE)
    assert (out.split(), err) == ([str(number) for number in range(12)], "")
    again = {int(path.name.split("-")[2]) for path in set(tmp_path.glob("started-*")) - before}
    assert again == set(range(5, 12))
    assert not list(tmp_path.rglob(".*.partial"))


@pytest.mark.parametrize(
    ("whole_group", "arguments"),
    [(True, []), (True, ["ahead"]), (False, []), (True, ["busy"]), (True, ["busy", "ahead"])],
)
def test_an_interrupt_ends_every_process(
    tmp_path: Path, script: Start, whole_group: bool, arguments: list[str]
) -> None:
    (tmp_path / "stop_at").write_text("3")
    process = script(*arguments)
    until(stuck(tmp_path, 3))
    if whole_group:  # as a terminal does
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    out, err = process.communicate(timeout=_DEADLINE)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert time.monotonic() - begun < 5
    until(lambda: not session(process))
    assert len(list(tmp_path.glob("*.result"))) == 3
