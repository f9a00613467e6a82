"""Errors of a GPU whose memory is full. It does not load torch."""

# What torch, cuBLAS, cuDNN, cuFFT and nvJPEG say besides an OutOfMemoryError. A convolution for whose workspace there is no
# room finds "no engine" (https://github.com/pytorch/pytorch/issues/108645), a transform an internal error
# (https://github.com/pytorch/pytorch/issues/119420). Both can mean something else too, so messages quote the error itself.
# 5 is nvJPEG's NVJPEG_STATUS_ALLOCATOR_FAILURE (https://github.com/pytorch/vision/issues/4378).
FULL = ('out of memory', 'ALLOC_FAILED', 'ALLOCATION_FAILED', 'unable to find an engine', 'CUFFT_INTERNAL_ERROR',
        'Failed to decode batch: 5')


class OutOfMemory(RuntimeError):
    """A GPU's memory is full. The message is a sentence with the remedy."""


def is_out_of_memory(error):
    """Whether an exception says that a GPU's memory is full."""
    is_torchs = type(error).__name__ == 'OutOfMemoryError'
    return is_torchs or isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)
