"""What a training runs on: the versions of what it uses, and the load while it runs."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any

import timm
import torch
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from tagger.system.world import read_world

# A point every half minute: a training of minutes has its curve, one of seconds has none.
_SECONDS, _SAMPLES = 10, 3


def machine_tags() -> dict[str, str]:
    """Return the versions of Python, torch, timm and CUDA, and the device by its name."""
    told = {"python": platform.python_version(), "torch": torch.__version__}
    told |= {"timm": timm.__version__, "device": "cpu"}
    if torch.cuda.is_available():
        told |= {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    size = read_world().size
    return told | ({"device": f"{size} x {told['device']}"} if size > 1 else {})


def installed_packages() -> str:
    """Return all installed packages with their versions, as pip reads them."""
    found = {f"{one.name}=={one.version}" for one in metadata.distributions() if one.name}
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


@contextmanager
def system_metrics(run_id: str) -> Iterator[None]:
    """Log the load of the machine to a run of MLflow, whose own variables change how, or whether.

    Of GPUs it tells where `nvidia-ml-py` is installed.
    """
    wanted: Any = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
    monitored: Any = SystemMetricsMonitor
    monitor = None
    with suppress(Exception):  # what this machine does not tell is left out
        if not wanted.is_set() or wanted.get():
            monitor = monitored(run_id, _SECONDS, _SAMPLES, resume_logging=True)
            monitor.start()
    try:
        yield
    finally:
        if monitor:
            with suppress(Exception):
                monitor.finish()
