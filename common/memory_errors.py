"""Errors of a GPU whose memory is full. It does not load torch."""

# What torch, cuBLAS and cuDNN say besides an OutOfMemoryError. A convolution for whose workspace there is no room
# finds "no engine" (https://github.com/pytorch/pytorch/issues/108645). That can also mean a cuDNN that does not fit
# PyTorch, so messages quote the error itself.
FULL = ('out of memory', 'STATUS_ALLOC_FAILED', 'DEVICE_ALLOCATION_FAILED', 'unable to find an engine')


class OutOfMemory(RuntimeError):
    """A GPU's memory is full. The message is a sentence with the remedy."""


def is_out_of_memory(error):
    """Whether an exception says that a GPU's memory is full."""
    is_torchs = type(error).__name__ == 'OutOfMemoryError'
    return is_torchs or isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)
