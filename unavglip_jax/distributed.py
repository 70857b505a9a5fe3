"""Joining the processes of a run, from what the environment says of them."""

import os

import jax

from unavglip_jax.config import InputError

NAMES = ("UNAVGLIP_COORDINATOR", "UNAVGLIP_NUM_PROCESSES", "UNAVGLIP_PROCESS_ID")
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # processes of a job


def start() -> None:
    """Joins the other processes; must come before anything that uses a device.

    UNAVGLIP_COORDINATOR (host:port of the first process), UNAVGLIP_NUM_PROCESSES and
    UNAVGLIP_PROCESS_ID say who they are; UNAVGLIP_COORDINATOR=auto leaves it to jax, which knows SLURM,
    Open MPI, Kubernetes and Cloud TPU. SLURM, Open MPI and indexed Kubernetes jobs of several processes
    are recognised without it. In any other case the run is one process.

    Raises:
      InputError: only some of the variables are set, or they make no sense.
    """
    given = [os.environ.get(name) for name in NAMES]
    if given[0] == "auto" or (not any(given) and in_cluster()):
        jax.distributed.initialize()
        return compile_together()
    if not any(given):
        return
    if not all(given):
        missing = ", ".join(name for name, value in zip(NAMES, given, strict=True) if not value)
        raise InputError(f"{missing} is not set; set all of {', '.join(NAMES)}, or none")
    coordinator, count, index = given
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise InputError(
            f"UNAVGLIP_PROCESS_ID is {index} and UNAVGLIP_NUM_PROCESSES {count}; they must be whole "
            "numbers, the first below the second"
        )
    jax.distributed.initialize(coordinator, int(count), int(index))
    compile_together()


def compile_together() -> None:
    """Leaves the compilation cache alone on CPUs.

    There the first process finds its step in it and the others, whose keys differ, never do; the first
    would wait for their compilers in a collective, and Gloo gives up after half a minute.
    """
    if jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)


def in_cluster() -> bool:
    """Whether several processes were started together by something that jax knows."""
    several = any(int(os.environ.get(name, "1")) > 1 for name in COUNTS)
    return several or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
