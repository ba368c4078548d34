"""Jobs in worker processes and in this process: order, errors, progress, and no process left behind."""

from __future__ import annotations

import gc
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tqdm import tqdm

from dlas_store.errors import StoreError, WriteError
from dlas_store.processes import Progress, StoppedError, available_cores, count_workers, run_in_order
from dlas_store.progress import progress_bar
from tests.support.sample_data import ROOT
from tests.support.small_stores import in_child

PATIENCE_SECONDS = 20.0


def square_late(number: int, progress: Progress) -> int:
    """Return the square of a number; the first two jobs take longest."""
    time.sleep(0.05 if number < 2 else 0)
    progress.advance(1, number)
    return number * number


def fail_at_three(number: int, progress: Progress) -> int:
    progress.advance(1, 0)
    if number == 3:
        raise WriteError(28, "disk: full")
    return number


def die(number: int, progress: Progress) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def exit_early(number: int, progress: Progress) -> int:
    if number == 1:
        os._exit(3)
    return number


def work_until_stopped(marker: Path, progress: Progress) -> None:
    """Work until the run stops, then create the marker file."""
    marker.with_suffix(".pid").write_text(str(os.getpid()))
    deadline = time.monotonic() + 3 * PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            progress.advance(1, 1)
        except StoppedError:
            marker.touch()
            raise
        time.sleep(0.005)


def worker_id(_: int, progress: Progress) -> int:
    time.sleep(0.02)
    return os.getpid()


def interrupt_itself(_: int, progress: Progress) -> None:
    signal.raise_signal(signal.SIGINT)


def wait_for(condition: Callable[[], object], message: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(autouse=True)
def no_process_left_behind() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    after = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert [child for child in after if "resource_tracker" not in " ".join(child.cmdline())] == []


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("jobs", [0, 1, 3, 40])
def test_answers_come_in_the_order_of_the_jobs(workers: int, jobs: int) -> None:
    assert list(run_in_order(square_late, range(jobs), workers=workers)) == [n * n for n in range(jobs)]


def test_no_more_jobs_are_taken_than_are_under_way() -> None:
    taken_jobs: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(100):
            taken_jobs.append(number)
            yield number

    for done, _ in enumerate(run_in_order(square_late, jobs(), workers=2), 1):
        assert len(taken_jobs) <= done + 4
    assert len(taken_jobs) == 100


def test_jobs_run_in_as_many_other_processes_as_asked_for() -> None:
    workers = set(run_in_order(worker_id, range(12), workers=3))
    assert os.getpid() not in workers
    assert 1 <= len(workers) <= 3


def test_an_error_in_a_job_is_raised_as_it_is_after_what_came_before() -> None:
    results = run_in_order(fail_at_three, range(100), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WriteError, match="disk: full") as error:
        next(results)
    assert error.value.errno == 28


def test_an_error_of_the_jobs_themselves_is_raised() -> None:
    def jobs() -> Iterator[int]:
        yield 1
        raise ValueError("no more jobs")

    with pytest.raises(ValueError, match="no more jobs"):
        list(run_in_order(square_late, jobs(), workers=2))


@pytest.mark.parametrize("job", [die, exit_early])
def test_a_killed_worker_is_an_error_that_says_what_to_do(job: Callable[[int, Progress], int]) -> None:
    with pytest.raises(StoreError, match=r"worker process was killed.*fewer --workers"):
        list(run_in_order(job, range(20), workers=2))


def test_giving_up_early_stops_the_workers(tmp_path: Path) -> None:
    results = run_in_order(work_until_stopped, [tmp_path / "one", tmp_path / "two"], workers=2)
    with pytest.raises(RuntimeError, match="given up"):
        raise_once_started(results, tmp_path)
    results.close()  # type: ignore[attr-defined]


def raise_once_started(results: Iterator[None], folder: Path) -> None:
    """Wait for a result until both jobs work, then raise an error in the wait, as Ctrl-C does."""

    def give_up(signum: int, frame: object) -> None:
        raise RuntimeError("given up")

    previous = signal.signal(signal.SIGALRM, give_up)
    watcher = os.fork()
    if watcher == 0:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(list(folder.glob("*.pid"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGALRM)
        os._exit(0)
    try:
        next(results)
    finally:
        os.waitpid(watcher, 0)
        signal.signal(signal.SIGALRM, previous)
        assert (folder / "one").exists()
        assert (folder / "two").exists()


def test_progress_is_that_of_all_workers() -> None:
    with tqdm(total=30, file=io.StringIO()) as bar:
        list(run_in_order(square_late, range(30), workers=3, bar=bar))
        assert bar.n == 30


def test_what_the_parent_did_itself_is_not_reported_by_its_workers() -> None:
    Progress().advance(1, 1)
    list(run_in_order(square_late, [5], workers=0))
    with tqdm(total=30, file=io.StringIO()) as bar:
        list(run_in_order(square_late, range(30), workers=3, bar=bar))
        assert bar.n == 30


def test_a_job_runs_outside_of_a_worker() -> None:
    progress = Progress()
    assert [square_late(number, progress) for number in range(200)] == [number * number for number in range(200)]
    progress.flush()


def test_progress_reports_now_and_then_and_all_of_it_in_the_end() -> None:
    reports: list[tuple[int, int]] = []
    progress = Progress(lambda patches, payload_bytes: reports.append((patches, payload_bytes)))
    for _ in range(100):
        progress.advance(1, 10)
    assert reports == [(64, 640)]
    progress.flush()
    assert reports == [(64, 640), (36, 360)]


class TestInThisProcess:
    @pytest.mark.parametrize("jobs", [0, 1, 40])
    def test_answers_are_those_of_workers_in_order(self, jobs: int) -> None:
        assert list(run_in_order(square_late, range(jobs), workers=0)) == [n * n for n in range(jobs)]

    def test_no_other_process_and_no_other_thread_works(self) -> None:
        threads = threading.active_count()
        results = run_in_order(worker_id, range(3), workers=0)
        assert next(results) == os.getpid()
        assert threading.active_count() == threads
        assert set(results) == {os.getpid()}

    def test_interrupts_and_collections_stay_as_they_were(self) -> None:
        before = signal.getsignal(signal.SIGINT), gc.get_freeze_count()
        list(run_in_order(square_late, range(3), workers=0))
        assert (signal.getsignal(signal.SIGINT), gc.get_freeze_count()) == before

    def test_a_job_is_taken_when_its_answer_is_asked_for(self) -> None:
        taken_jobs: list[int] = []

        def jobs() -> Iterator[int]:
            for number in range(10):
                taken_jobs.append(number)
                yield number

        results = run_in_order(square_late, jobs(), workers=0)
        assert taken_jobs == []
        next(results)
        assert taken_jobs == [0]

    def test_an_error_in_a_job_is_raised_as_it_is_after_what_came_before(self) -> None:
        results = run_in_order(fail_at_three, range(100), workers=0)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(WriteError, match="disk: full") as error:
            next(results)
        assert error.value.errno == 28

    def test_ctrl_c_is_raised_in_the_job(self) -> None:
        with pytest.raises(KeyboardInterrupt):
            list(run_in_order(interrupt_itself, range(3), workers=0))

    def test_progress_is_that_of_the_jobs(self) -> None:
        with tqdm(total=100, file=io.StringIO()) as bar:
            for done, _ in enumerate(run_in_order(square_late, range(100), workers=0, bar=bar), 1):
                assert bar.n == done


def test_workers_are_as_many_as_asked_for_but_no_more_than_jobs() -> None:
    assert count_workers(None) == available_cores()
    assert count_workers(None, jobs=1) == 1
    assert count_workers(5, jobs=3) == 3
    assert count_workers(0, jobs=3) == 0
    assert count_workers(2, jobs=3) == 2


def test_no_bar_is_shown_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(30, "testing") as bar:
        list(run_in_order(square_late, range(30), workers=3, bar=bar))
    assert capsys.readouterr().err == ""


PARENT = """
import json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import psutil
from dlas_store.processes import run_in_order
from tests.test_processes import work_until_stopped

folder = Path(sys.argv[1])
jobs = [folder / name for name in ("one", "two", "three")]
list(run_in_order(work_until_stopped, jobs, workers=3))
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program whose three workers are running."""
    code = PARENT.format(root=str(ROOT))
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: len(worker_ids(tmp_path)) == 3, "the workers did not start")
            yield process
        finally:
            process.kill()


def worker_ids(folder: Path) -> list[int]:
    return [json.loads(path.read_text()) for path in folder.glob("*.pid") if path.read_text()]


def test_workers_end_when_their_parent_is_killed(parent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(map(is_running, worker_ids(tmp_path))), "workers outlived their parent")
    assert not (tmp_path / "one").exists()  # the workers ended without a request to stop


def test_ctrl_c_ends_parent_and_workers(parent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    for pid in [*worker_ids(tmp_path), parent.pid]:  # a terminal sends Ctrl-C to the whole process group
        os.kill(pid, signal.SIGINT)
    parent.wait(PATIENCE_SECONDS)
    wait_for(lambda: not any(map(is_running, worker_ids(tmp_path))), "workers outlived Ctrl-C")
    assert all((tmp_path / name).exists() for name in ("one", "two", "three"))
    assert parent.stderr is not None
    assert b"KeyboardInterrupt" in parent.stderr.read()


def test_a_killed_worker_ends_the_others_too(parent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    os.kill(worker_ids(tmp_path)[0], signal.SIGKILL)
    assert parent.wait(PATIENCE_SECONDS) == 1
    assert not any(map(is_running, worker_ids(tmp_path)))
    assert parent.stderr is not None
    assert b"a worker process was killed" in parent.stderr.read()


def test_the_cores_are_those_that_this_process_may_use() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
        os.sched_setaffinity(0, allowed)


def test_no_room_for_what_processes_share_is_an_error_that_says_where() -> None:
    def attempt() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(WriteError, match="memory that worker processes share, in /dev/shm"):
            list(run_in_order(square_late, [1], workers=1))

    assert in_child(attempt) == 0
