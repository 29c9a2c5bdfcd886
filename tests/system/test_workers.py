"""Work on chunks: in order, on every core, never twice, and ended cleanly however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagger.core.errors import TaggerError
from tagger.system import scratch, workers

STAGES = Path(__file__).parents[2] / "stages"
_DEADLINE = 60  # seconds until a test gives up; none is claimed to need them


def plus(chunk: pa.Table, *, number: int, log: str) -> pa.Table:
    """Add to every value, and leave a mark of having done so."""
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(f"{chunk['value'].to_pylist()} + {number}\n")
    return pa.table({"sum": [value + number for value in chunk["value"].to_pylist()]})


def slow_at_first(chunk: pa.Table) -> pa.Table:
    if chunk["value"][0].as_py() == 0:
        time.sleep(0.3)
    return chunk


def dies(chunk: pa.Table) -> pa.Table:
    if chunk["value"][0].as_py() == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return chunk


def large(chunk: pa.Table) -> pa.Table:
    return pa.table({"value": [bytes(30_000_000)]})


def mistaken(chunk: pa.Table) -> pa.Table:
    raise TaggerError(f"chunk {chunk['value'].to_pylist()} is a mistake")


def values(*chunks: int | list[int]) -> list[pa.Table]:
    return [pa.table({"value": [c] if isinstance(c, int) else c}) for c in chunks]


def sums(results: Iterator[pa.Table]) -> list[list[int]]:
    return [result["sum"].to_pylist() for result in results]


def test_there_is_one_result_per_chunk_in_their_order() -> None:
    chunks = values(*range(12))
    results = list(workers.map_chunks(partial(slow_at_first), iter(chunks)))
    assert [result["value"].to_pylist() for result in results] == [[n] for n in range(12)]


@pytest.mark.parametrize("chunks", [[], values([1, 2])])
def test_no_chunk_and_one_chunk_are_worked_on_here(chunks: list[pa.Table]) -> None:
    here = partial(lambda chunk: chunk.append_column("process", pa.array([os.getpid()] * 2)))
    results = list(workers.map_chunks(here, chunks))
    assert [result["process"].to_pylist() for result in results] == [[os.getpid()] * 2] * len(
        chunks
    )


def test_only_a_few_chunks_are_held_at_a_time() -> None:
    taken = 0

    def chunks() -> Iterator[pa.Table]:
        nonlocal taken
        for chunk in values(*range(200)):
            taken += 1
            yield chunk

    results = workers.map_chunks(partial(slow_at_first), chunks())
    next(results)
    assert taken <= 2 * (os.cpu_count() or 1) + 1
    assert len(list(results)) == 199


@pytest.mark.parametrize("chunks", [values([1, 2]), values([1, 2], 3, [4])])
def test_what_was_done_is_not_done_again(tmp_path: Path, chunks: list[pa.Table]) -> None:
    log, memory = tmp_path / "log", tmp_path / "memory"
    add = partial(plus, number=10, log=str(log))
    first = sums(workers.map_chunks(add, chunks, memory))
    assert first == [[v + 10 for v in chunk["value"].to_pylist()] for chunk in chunks]
    done = log.read_text()
    assert len(done.splitlines()) == len(chunks)
    assert sums(workers.map_chunks(add, chunks, memory)) == first
    assert log.read_text() == done
    scratch.remove_folder(memory)
    assert not memory.exists()
    assert sums(workers.map_chunks(add, chunks, memory)) == first
    assert len(log.read_text().splitlines()) == 2 * len(chunks)


def test_without_a_memory_everything_is_done_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    add = partial(plus, number=1, log=str(log))
    for _ in range(2):
        assert sums(workers.map_chunks(add, values(5))) == [[6]]
    assert len(log.read_text().splitlines()) == 2


def test_other_settings_and_other_chunks_are_not_confused(tmp_path: Path) -> None:
    log, memory = str(tmp_path / "log"), tmp_path / "memory"
    for number in (1, 2, 11):
        for chunk in (1, [1, 1], [11], 2):
            add = partial(plus, number=number, log=log)
            (result,) = sums(workers.map_chunks(add, values(chunk), memory))
            assert result == [v + number for v in ([chunk] if isinstance(chunk, int) else chunk)]
    assert len(Path(log).read_text().splitlines()) == 12


columns = st.lists(
    st.tuples(st.none() | st.text(max_size=4), st.none() | st.integers(0, 3)), max_size=12
)


def table(rows: list[tuple[str | None, int | None]]) -> pa.Table:
    schema = pa.schema({"name": pa.string(), "size": pa.int64()})
    return pa.Table.from_pylist([{"name": n, "size": s} for n, s in rows], schema=schema)


@given(columns, columns)
def test_a_key_is_that_of_the_values_and_of_the_settings(
    rows: list[tuple[str | None, int | None]], others: list[tuple[str | None, int | None]]
) -> None:
    one, other = partial(plus, number=1, log=""), partial(plus, number=2, log="")
    key = workers.chunk_key(one, table(rows))
    in_two = pa.concat_tables([table(rows[:3]), table(rows[3:])])
    assert workers.chunk_key(one, in_two) == key
    assert (workers.chunk_key(one, table(others)) == key) == (rows == others)
    assert workers.chunk_key(other, table(rows)) != key
    assert workers.chunk_key(partial(slow_at_first), table(rows)) != key


@given(st.lists(st.integers(0, 9)), st.integers(1, 7))
def test_chunks_are_the_table_cut_up(numbers: list[int], rows: int) -> None:
    chunks = list(workers.chunked(pa.table({"value": pa.array(numbers, pa.int64())}), rows))
    assert [value for chunk in chunks for value in chunk["value"].to_pylist()] == numbers
    assert all(len(chunk) == rows for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= rows for chunk in chunks)


def test_items_made_ahead_come_in_order_and_an_error_comes_through() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise TaggerError("no more")

    ahead = workers.one_ahead(items())
    assert [next(ahead) for _ in range(5)] == list(range(5))
    with pytest.raises(TaggerError, match="no more"):
        next(ahead)
    assert list(workers.one_ahead([])) == []


def test_a_process_that_dies_is_one_clear_line() -> None:
    with pytest.raises(TaggerError, match=r"A process died while working on dies.*Run again"):
        list(workers.map_chunks(partial(dies), values(*range(6))))


def test_a_mistake_found_by_a_process_is_told_here() -> None:
    with pytest.raises(TaggerError, match=r"chunk \[0\] is a mistake"):
        list(workers.map_chunks(partial(mistaken), values(*range(6))))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("used", [iter, workers.one_ahead])
def test_a_run_that_is_broken_off_while_a_result_is_sent_ends(
    used: Callable[[Iterator[pa.Table]], Iterator[pa.Table]],
) -> None:
    results: Any = used(workers.map_chunks(partial(large), values(*range(12))))
    assert len(next(results)) == 1
    results.close()


SCRIPT = """
    import os, sys, time
    from functools import partial
    from pathlib import Path

    import pyarrow as pa

    from tagger.core import errors, files
    from tagger.system import workers


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
        results = workers.map_chunks(partial(slowly, folder="."), chunks, Path("memory"))
        if "ahead" in sys.argv:
            results = workers.one_ahead(results)
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
def script(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
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
    """Tell whether workers hang in a chunk, all before it being done."""
    return lambda: (
        (folder / f".{first}.result.partial").exists()
        and len(list((folder / "memory").glob("[!.]*"))) == first
    )


def session(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes of a session, by what the kernel says of each."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == process.pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_run_that_was_killed_goes_on_and_leaves_no_process(
    tmp_path: Path, script: Callable[..., subprocess.Popen[str]]
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
def test_an_interrupt_ends_everything(
    tmp_path: Path,
    script: Callable[..., subprocess.Popen[str]],
    whole_group: bool,
    arguments: list[str],
) -> None:
    (tmp_path / "stop_at").write_text("3")
    process = script(*arguments)
    until(stuck(tmp_path, 3))
    if whole_group:  # as a terminal does
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=_DEADLINE)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    until(lambda: not session(process))
    assert len(list(tmp_path.glob("*.result"))) == 3
