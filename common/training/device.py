"""Tensors on their way to the device and back, without the host waiting for it, and how a GPU chooses its kernels."""
from contextlib import contextmanager

import torch
from torchvision.transforms.functional import convert_image_dtype


def to_device(tensor, device):
    """A tensor on the device, where it may be already, without waiting for it.

    Images (B, C, H, W) come in the memory layout channels last.
    """
    if device.type == 'cuda' and not tensor.is_cuda and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return tensor.to(device, non_blocking=True).to(memory_format=layout)


def to_host(tensor):
    """A small tensor on its way to the host, and the event of its arrival; of one on the CPU itself and None."""
    if not tensor.is_cuda:
        return tensor, None
    host = torch.empty_like(tensor, device='cpu', pin_memory=True).copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived


@contextmanager
def untimed_kernels():
    """Context in which cuDNN chooses its kernels by rule, for images of many sizes.

    In a run whose batches all have one shape it times all that it has, once. It would do so again for each new size.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Normalise:
    """Images (B, C, H, W) as they were loaded -> on the device, float32, normalised, channels last.

    They are uint8, or float32 in [0, 1]. normalisation: (mean, std) of each channel. The result equals
    `as_input` of each image (common/images/augmented.py), to the last bit on the CPU.
    """

    def __init__(self, normalisation, device):
        self.device = device
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
                               for values in normalisation)

    def __call__(self, images):
        images = convert_image_dtype(to_device(images, self.device), torch.float32)
        # torchvision's normalize looks at std, and a GPU would wait for that
        return images.sub(self.mean).div_(self.std)
