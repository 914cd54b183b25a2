"""Running pure jobs: here, on processes of this machine (joblib), or on a Ray or Dask cluster. A job that is finished is handed over at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from onnxprune.errors import MissingExtraError, OnnxpruneError, UsageError

CLUSTERS = ("ray", "dask")
TRIES = 3  # a process that dies (memory, a kill) takes its unfinished job along; the jobs that are left are tried again

Job = Callable[[Any], Any]


def run_jobs(
    function: Job, jobs: Sequence[Any], *, workers: int = 1, cluster: str = ""
) -> Iterator[tuple[Any, Any]]:
    """(job, result) of every job, in the order in which they finish.

    Parameters
    ----------
    function
        Pure: of its job alone; it and the jobs are sent to other processes.
    workers
        Processes of this machine; 1 = this process.
    cluster
        "ray" or "dask", a cluster of `workers` on this machine; "ray:ADDRESS" or "dask:ADDRESS" one that runs already.

    Raises
    ------
    UsageError
        Another cluster than these.
    MissingExtraError
        joblib, ray or dask is not installed.
    OnnxpruneError
        Workers died several times with jobs left; what was finished has been handed over.
    """
    name, _, address = cluster.partition(":")
    if name and name not in CLUSTERS:
        raise UsageError(
            "cluster-unknown",
            f"cluster {cluster!r} is none of {', '.join(CLUSTERS)}, alone or with :ADDRESS",
        )
    if name:
        yield from (_ray if name == "ray" else _dask)(function, jobs, workers, address)
    elif workers == 1:
        yield from ((job, function(job)) for job in jobs)
    else:
        yield from _processes(function, list(jobs), workers)


def _processes(function: Job, jobs: list[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Joblib's processes; started anew where one dies."""
    try:
        import joblib
        from joblib.externals.loky.process_executor import BrokenProcessPool
    except ImportError as problem:
        raise MissingExtraError("joblib", "cluster", "several workers") from problem
    left = dict(enumerate(jobs))
    for _ in range(TRIES):
        pool = joblib.Parallel(
            n_jobs=workers, batch_size=1, pre_dispatch="all", return_as="generator_unordered"
        )
        try:
            for number, result in pool(
                joblib.delayed(_numbered)(function, n, job) for n, job in list(left.items())
            ):
                yield left.pop(number), result
        except BrokenProcessPool:
            continue
        return
    raise OnnxpruneError(
        "workers-died",
        f"worker processes died {TRIES} times with {len(left)} jobs left (out of memory?): use fewer --workers and run again",
    )


def _numbered(function: Job, number: int, job: Any) -> tuple[int, Any]:
    return number, function(job)


def _ray(
    function: Job, jobs: Sequence[Any], workers: int, address: str
) -> Iterator[tuple[Any, Any]]:
    try:
        import ray
    except ImportError as problem:
        raise MissingExtraError("ray", "cluster", "a Ray cluster") from problem
    ray.init(
        address=address or None,
        num_cpus=None if address else workers,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        task = ray.remote(num_cpus=1, max_retries=TRIES)(function)
        waiting = {task.remote(job): job for job in jobs}
        while waiting:
            for done in ray.wait(list(waiting), num_returns=1)[0]:
                job = waiting.pop(done)
                try:
                    result = ray.get(done)
                except ray.exceptions.WorkerCrashedError as problem:
                    raise OnnxpruneError(
                        "workers-died",
                        f"a Ray worker died {TRIES} times on one job with {len(waiting)} left; run again",
                    ) from problem
                except ray.exceptions.RayTaskError as problem:
                    raise problem.cause from problem
                yield job, result
    finally:
        ray.shutdown()


def _dask(
    function: Job, jobs: Sequence[Any], workers: int, address: str
) -> Iterator[tuple[Any, Any]]:
    try:
        from dask.distributed import Client, LocalCluster, as_completed
    except ImportError as problem:
        raise MissingExtraError("dask", "cluster", "a Dask cluster") from problem
    with ExitStack() as stack:
        own = (
            None
            if address
            else stack.enter_context(
                LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
            )
        )
        client = stack.enter_context(Client(own or address))
        waiting = {client.submit(function, job, pure=False, retries=TRIES): job for job in jobs}
        for done in as_completed(list(waiting)):
            yield waiting[done], done.result()
