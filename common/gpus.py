"""How many GPUs torch will see, found out without loading it where that is possible, since it takes seconds.

    python -m common.gpus        # prints the number of processes that common/launch.sh starts: one for each GPU, at least one
"""
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

# What the drivers of GPUs make: of NVIDIA, of NVIDIA on WSL, of NVIDIA's Jetson, of AMD.
DEVICES = ('/dev/nvidiactl', '/dev/dxg', '/dev/nvhost-gpu', '/dev/nvgpu', '/dev/kfd')


def number_of_gpus():
    """The number of GPUs that torch.cuda.device_count() gives."""
    if not torch_is_for_gpus():
        return 0
    if shutil.which('nvidia-smi') is None:
        return torch_count() if any(map(os.path.exists, DEVICES)) else 0
    listed = nvidia_smi()
    number = None if listed is None else chosen(listed, os.environ.get('CUDA_VISIBLE_DEVICES'))
    return torch_count() if number is None else number


def torch_is_for_gpus():
    """Whether the installed torch was built for GPUs, by the text of its file version.py; True where that is not clear."""
    found = importlib.util.find_spec('torch')
    try:
        text = Path(found.origin).with_name('version.py').read_text(encoding='utf-8')
    except (AttributeError, TypeError, OSError):
        return True
    built_for = re.findall(r'^(?:cuda|hip|xpu)\b[^=\n]*=\s*(\S+)', text, re.MULTILINE)
    return not built_for or any(value != 'None' for value in built_for)


def nvidia_smi():
    """The lines of `nvidia-smi -L`, one for each GPU and each part of one; None if it fails."""
    try:
        done = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def chosen(listed, visible):
    """How many of the GPUs in the lines of nvidia-smi a process may use; None if only torch can tell.

    visible: CUDA_VISIBLE_DEVICES, or None: indices with commas between them. CUDA ignores the first index of no GPU,
    and all after it.
    """
    gpus = [line for line in listed if line.startswith('GPU ')]
    if len(gpus) != len([line for line in listed if line.strip()]):  # a GPU in parts (MIG)
        return None
    if visible is None:
        return len(gpus)
    words = [word.strip() for word in visible.split(',')] if visible.strip() else []
    if not all(word.isdigit() for word in words) or len(set(words)) < len(words):
        return None
    within = [int(word) < len(gpus) for word in words]
    return (within + [False]).index(False)


def torch_count():
    """The number itself, from torch."""
    import torch
    return torch.cuda.device_count()


if __name__ == '__main__':
    print(max(1, number_of_gpus()))
