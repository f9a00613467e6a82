"""A GPU whose memory is full is recognised by whatever says so, and the message has the remedy."""
from contextlib import nullcontext

import pytest
import torch

from common.cli import errors_in_one_sentence
from common.memory_errors import OutOfMemory, is_out_of_memory
from common.training import trainer
from common.training.accumulation import fit_accumulation
from pretrain.main import pretrain
from tests.common.runs import fail_with, in_step
from tests.conftest import Stop, stop_after

FULL = [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'), RuntimeError('CUDA error: out of memory'),
        RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
        RuntimeError('GET was unable to find an engine to execute this computation'),
        RuntimeError('cuFFT error: CUFFT_ALLOC_FAILED'), RuntimeError('cuFFT error: CUFFT_INTERNAL_ERROR'),
        RuntimeError('Error while decoding JPEG images: Failed to decode batch: 5')]


@pytest.mark.parametrize('error', FULL)
def test_all_that_say_it_are_recognised(error):
    assert is_out_of_memory(error)
    with pytest.raises(SystemExit, match='error: out of GPU memory .*: give a smaller --bs or --input_size'), \
            errors_in_one_sentence():
        raise error


@pytest.mark.parametrize('error', [RuntimeError('shapes do not match'), ValueError('out of memory'), RuntimeError(''),
                                   RuntimeError('Error while decoding JPEG images: Failed to decode batch: 3')])
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)


def fill(monkeypatch, most):
    """Steps that find no room for more than `most` images at a time."""
    original = trainer.train_step

    def train_step(model, batches, accum, *others):
        if 8 // accum > most:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
        return original(model, batches, accum, *others)

    monkeypatch.setattr(trainer, 'train_step', train_step)


def test_a_step_that_does_not_fit_names_what_helps(tiny, tmp_path, monkeypatch):
    fill(monkeypatch, most=4)
    with pytest.raises(OutOfMemory, match=r'\(CUDA .* GiB\): give a smaller --bs or --input_size, or --accum=auto, which'):
        pretrain(tiny(accum=1, run_dir=str(tmp_path / 'given')))
    with pytest.raises(OutOfMemory, match='or --accum=2 or more, which cuts'):
        pretrain(tiny(accum='auto', run_dir=str(tmp_path / 'found')))


def test_a_run_that_goes_on_with_less_memory_is_told_what_lets_it(tiny, monkeypatch):
    """Its batch and its sizes are as they were, and --accum=auto means the number that was found out at its beginning."""
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 3)
        pretrain(tiny(accum='auto', save_every_steps=2))
    fill(monkeypatch, most=4)
    with pytest.raises(OutOfMemory, match=r'\(CUDA .* GiB\): give --accum=2 or more, which cuts the batch into parts$'):
        pretrain(tiny(accum='auto'))
    pretrain(tiny(accum=2))


def test_a_batch_that_cannot_be_cut_further(tiny, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 3)
        pretrain(tiny(save_every_steps=2))
    fill(monkeypatch, most=0)
    with pytest.raises(OutOfMemory, match='start more processes .* their number has to divide 8'):
        pretrain(tiny(accum=8))


def test_a_run_that_has_saved_something_is_told_what_lets_it_go_on(tiny, monkeypatch):
    """Memory may be full late in its first life; the same folder refuses another batch by then."""
    in_step(monkeypatch, 3, lambda: fail_with(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')))
    with pytest.raises(OutOfMemory, match=r'\): give --accum=auto, which cuts the batch into parts$'):
        pretrain(tiny(save_every_steps=2))


def test_a_trial_that_fails_names_the_error():
    """Another cause than a full memory can look like one."""
    class Broken(torch.nn.Linear):
        def forward(self, images):
            raise RuntimeError('GET was unable to find an engine to execute this computation')

    class Device:
        """Stands in for the ranks of a GPU."""
        device = torch.device('meta')
        size = 1

        def any(self, is_true):
            return is_true

    with pytest.raises(ValueError, match=r"1 image at a time does not fit in memory \(GET was .*\), and a rank's batch of 2"):
        fit_accumulation(Broken(2, 2), lambda n: (torch.zeros(n, 2),), 2, Device(), nullcontext)
