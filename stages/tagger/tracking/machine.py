"""What a training runs on: versions, device, installed packages."""

import platform
from importlib import metadata

import timm
import torch

from tagger.system.world import read_world


def machine_tags() -> dict[str, str]:
    """Return the versions of Python, torch, timm and CUDA, and the name of the device."""
    tags = {"python": platform.python_version(), "torch": torch.__version__}
    tags |= {"timm": timm.__version__, "device": "cpu"}
    if torch.cuda.is_available():
        tags |= {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    size = read_world().size
    return tags | ({"device": f"{size} x {tags['device']}"} if size > 1 else {})


def installed_packages() -> str:
    """Return all installed packages with their versions, as pip reads them."""
    lines = {f"{each.name}=={each.version}" for each in metadata.distributions() if each.name}
    return "".join(f"{line}\n" for line in sorted(lines, key=str.lower))
