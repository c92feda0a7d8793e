"""Who does the tasks of a run: this process, a pool of this machine, the ranks of a launcher, or a Ray cluster.

Tasks are planned, results are appended to journals and do not depend on the engine: a run that ended early can be
continued with any of them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from typing_extensions import Self

from mg_llava.detection.detector import Size
from mg_llava.detection.run.settings import JobSettings
from mg_llava.detection.run.worker import Done, Worker, WorkKind
from mg_llava.work.pool import Pool
from mg_llava.work.processes import Processes

EngineName = Literal["pool", "torchrun", "slurm", "ray"]
_Value = TypeVar("_Value")

_STORE = 200 << 20
"""Bytes of a local cluster's object store; tasks and results are small."""


class DetectionEngine:
    """This process, alone or as one of a launcher's ``processes`` that see one folder; each writes what it finds."""

    def __init__(self, settings: JobSettings, processes: Processes | None = None) -> None:
        self.worker, self._processes = Worker(settings), processes

    def do(self, kind: WorkKind, tasks: Sequence[list[int]]) -> Iterator[list[Done]]:
        """The results of tasks, which are lines of a step, some lines at a time."""
        lines = (line for task in tasks for line in task)
        return ([done] for done in self.worker.do(kind, lines))

    def shapes(self, sizes: Sequence[Size]) -> list[str]:
        """See ``Worker.shapes``; builds the networks, so that a wrong path is known before hours of reading."""
        return self.worker.shapes(sizes)

    def share(self, tasks: list[list[int]]) -> list[list[int]]:
        """Those of all tasks that this process has done."""
        return tasks if self._processes is None else tasks[self._processes.rank :: self._processes.size]

    def on_main(self, work: Callable[[], _Value]) -> _Value:
        """Do something once; all processes get its result."""
        return work() if self._processes is None else self._processes.on_main(work)

    def together(self, work: Callable[[], None]) -> None:
        """Do something in each process, and wait for all."""
        if self._processes is None:
            work()
        else:
            self._processes.together(work)

    def close(self) -> None:
        """Let the workers go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PoolEngine(DetectionEngine):
    """A number of worker processes on this machine; the first process writes what they find."""

    def __init__(self, settings: JobSettings, workers: int) -> None:
        super().__init__(settings)
        self._pool = Pool(self.worker, workers)

    def do(self, kind: WorkKind, tasks: Sequence[list[int]]) -> Iterator[list[Done]]:
        """See ``DetectionEngine``."""
        return self._pool.run(Worker.do_task, ((kind, task) for task in tasks))

    def shapes(self, sizes: Sequence[Size]) -> list[str]:
        """See ``DetectionEngine``."""
        return next(self._pool.run(Worker.shapes, [sizes]))

    def close(self) -> None:
        """See ``DetectionEngine``."""
        self._pool.close()


class RayEngine(DetectionEngine):
    """Workers in a Ray cluster, which see the pictures and the folder; this process writes what they find.

    The cluster is the one of ``RAY_ADDRESS`` or of ``ray start`` on this machine; without either one is started here.
    Workers that are lost are started anew where there is room, and their tasks done again. Paths must be the same on
    all machines. There is a worker for each GPU, or for each core where there is none, unless ``workers`` says so.

    Raises:
        ImportError: Ray is not installed.
    """

    def __init__(self, settings: JobSettings, workers: int | None = None) -> None:
        super().__init__(settings)
        try:
            import ray
            import ray.util
        except ImportError as error:
            raise ImportError("--engine ray needs Ray: pip install 'mg_llava[ray]'") from error
        self._ray: Any = ray
        self._is_started_here = not ray.is_initialized()
        if self._is_started_here:
            _join_cluster(ray, workers)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = workers or gpus or int(resources["CPU"])
        place = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
        remote: Any = ray.remote(Worker).options(
            num_cpus=1,
            num_gpus=1 if gpus >= count else gpus / count,
            max_restarts=3,
            max_task_retries=3,
            runtime_env={"env_vars": {"PYTHONPATH": place}},
        )
        self._actors: list[Any] = [remote.remote(settings) for _ in range(count)]
        self._pool: Any = ray.util.ActorPool(self._actors)

    def do(self, kind: WorkKind, tasks: Sequence[list[int]]) -> Iterator[list[Done]]:
        """See ``DetectionEngine``; in the order in which tasks are done."""
        return self._pool.map_unordered(lambda actor, task: actor.do_task.remote((kind, task)), tasks)

    def shapes(self, sizes: Sequence[Size]) -> list[str]:
        """See ``DetectionEngine``."""
        return self._ray.get(self._actors[0].shapes.remote(sizes))

    def close(self) -> None:
        """See ``DetectionEngine``."""
        for actor in self._actors:
            self._ray.kill(actor)
        if self._is_started_here:
            self._ray.shutdown()


def make_engine(
    settings: JobSettings, name: EngineName | None = None, processes: int | None = None
) -> DetectionEngine:
    """The engine of a run; by default ``torchrun`` where it started this process, else ``pool``.

    ``processes`` is the number of workers of ``pool`` (1 by default) and ``ray``; launchers say it themselves.

    Raises:
        ImportError: Ray is not installed.
        ValueError: The launcher did not start this process, or ``processes`` is not positive.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}, must be at least 1")
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    name = name or ("torchrun" if launched else "pool")
    if name == "ray":
        return RayEngine(settings, processes)
    if name == "slurm":
        return DetectionEngine(settings, Processes.of_slurm(settings.work))
    if name == "torchrun":
        if "WORLD_SIZE" not in os.environ:
            raise ValueError("torchrun did not start this process; start it with torchrun, or use another engine")
        return DetectionEngine(settings, Processes())
    return DetectionEngine(settings) if processes in (None, 1) else PoolEngine(settings, processes)  # type: ignore[arg-type]


def _join_cluster(ray: Any, workers: int | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **options)
    except ConnectionError:
        if "RAY_ADDRESS" in os.environ:
            raise
        ray.init(address="local", num_cpus=workers, object_store_memory=_STORE, include_dashboard=False, **options)
