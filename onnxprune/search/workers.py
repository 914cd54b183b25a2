"""Execution of pure jobs in this process, in local processes (joblib), or on Ray or Dask.

Other processes receive contiguous parts of the jobs: consecutive ones share state there, such as
the activations in front of the group that they cut, and what all hold is sent once per part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from onnxprune.errors import MissingExtraError, OnnxpruneError, UsageError, plural

CLUSTERS = ("ray", "dask")
TRIES = 3  # a process that dies (out of memory, killed) loses its part, which is retried
PARTS = 3  # per process: more balance their loads, fewer share more
REMOTE_WORKERS = 8  # that a running cluster is assumed to have at least

Job = Callable[[Any], Any]


def run_jobs(
    function: Job, jobs: Sequence[Any], *, workers: int = 1, cluster: str = ""
) -> Iterator[tuple[Any, Any]]:
    """Yield (job, result) of every job, in the order in which they or their parts finish.

    Parameters
    ----------
    function
        Pure function of one job; it and the jobs are sent to other processes.
    workers
        Number of local processes; 1 = this process.
    cluster
        "ray" or "dask" starts a cluster of `workers` on this machine; "ray:ADDRESS" or
        "dask:ADDRESS" connects to a running one.

    Raises
    ------
    UsageError
        The cluster is not one of these.
    MissingExtraError
        joblib, ray or dask is not installed.
    OnnxpruneError
        Workers died TRIES times with jobs unfinished; all finished jobs have been yielded.
    """
    name, _, address = cluster.partition(":")
    if name and name not in CLUSTERS:
        raise UsageError(
            "cluster-unknown",
            f"unknown cluster {cluster!r}; give {' or '.join(CLUSTERS)}, optionally followed by "
            ":ADDRESS",
        )
    if workers == 1 and not name:
        yield from ((job, function(job)) for job in jobs)
        return
    count = PARTS * (max(workers, REMOTE_WORKERS) if address else workers)
    parts = [(function, part) for part in _divide(jobs, count)]
    if name == "ray":
        finished = _run_on_ray(_run_part, parts, workers, address)
    elif name == "dask":
        finished = _run_on_dask(_run_part, parts, workers, address)
    else:
        finished = _run_in_processes(_run_part, parts, workers)
    for (_, part), results in finished:
        yield from zip(part, results, strict=True)


def _divide(jobs: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Return at most `count` contiguous parts of nearly equal length."""
    count = min(count, len(jobs))
    return [jobs[len(jobs) * i // count : len(jobs) * (i + 1) // count] for i in range(count)]


def _run_part(part: tuple[Job, Sequence[Any]]) -> list[Any]:
    """Return the results of some jobs."""
    function, jobs = part
    return [function(job) for job in jobs]


def _run_in_processes(function: Job, jobs: list[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Run jobs in processes of joblib; restart the pool if a process dies."""
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
        # batches of one, so that a dying process loses nothing that is finished
        tasks = (joblib.delayed(_run_numbered)(function, n, job) for n, job in list(left.items()))
        try:
            # finished jobs leave `left`, so that the next try runs only the others
            for number, result in pool(tasks):
                yield left.pop(number), result
        except BrokenProcessPool:
            continue
        return
    raise OnnxpruneError(
        "workers-died",
        f"worker processes died {TRIES} times with {plural(len(left), 'part')} of the jobs left "
        "(out of memory?); use fewer --workers and run again",
    )


def _run_numbered(function: Job, number: int, job: Any) -> tuple[int, Any]:
    """Return a job's number with its result, as results arrive in any order."""
    return number, function(job)


def _run_on_ray(
    function: Job, jobs: Sequence[Any], workers: int, address: str
) -> Iterator[tuple[Any, Any]]:
    """Run jobs on a local or running Ray cluster."""
    try:
        import ray
    except ImportError as problem:
        raise MissingExtraError("ray", "cluster", "a Ray cluster") from problem
    ray.init(
        # ray refuses a number of CPUs for a cluster that already runs
        address=address or None,
        num_cpus=None if address else workers,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        task = ray.remote(num_cpus=1, max_retries=TRIES)(function)
        waiting = {task.remote(job): job for job in jobs}
        while waiting:
            # one at a time, so that a result is yielded as soon as it exists
            for done in ray.wait(list(waiting), num_returns=1)[0]:
                job = waiting.pop(done)
                try:
                    result = ray.get(done)
                except ray.exceptions.WorkerCrashedError as problem:
                    raise OnnxpruneError(
                        "workers-died",
                        f"a Ray worker died {TRIES} times on one part of the jobs, with "
                        f"{plural(len(waiting), 'other')} left; run again",
                    ) from problem
                except ray.exceptions.RayTaskError as problem:
                    # the job's own error, as in this process
                    raise problem.cause from problem
                yield job, result
    finally:
        ray.shutdown()


def _run_on_dask(
    function: Job, jobs: Sequence[Any], workers: int, address: str
) -> Iterator[tuple[Any, Any]]:
    """Run jobs on a local or running Dask cluster."""
    try:
        from dask.distributed import Client, LocalCluster, as_completed
    except ImportError as problem:
        raise MissingExtraError("dask", "cluster", "a Dask cluster") from problem
    with ExitStack() as stack:
        cluster: Any = address
        if not address:
            local = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
            cluster = stack.enter_context(local)
        # on the stack above the cluster, so that it closes first
        client = stack.enter_context(Client(cluster))
        # pure jobs of equal arguments would share one key, and one of them would be lost
        waiting = {client.submit(function, job, pure=False, retries=TRIES): job for job in jobs}
        for done in as_completed(list(waiting)):
            yield waiting[done], done.result()
