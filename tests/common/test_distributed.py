"""Processes without a GPU, and gradients that this PyTorch cannot exchange."""
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from common import distributed
from common.cli import errors_in_one_sentence
from common.distributed import Ranks
from common.images.datasets import same_images


def on_rank(rank, folder):
    """What a rank sees of errors that one rank alone has, saved in the folder."""
    dist.init_process_group('gloo', store=dist.FileStore(f'{folder}/store', 2), rank=rank, world_size=2)
    ranks = Ranks(rank, 2, torch.device('cpu'))

    def fail_on(number, kind=ValueError):
        if rank == number:
            raise kind(f'{number} has no room')
        return rank

    seen = [ranks.on_main(lambda: fail_on(1)), ranks.on_all(lambda: fail_on(None)),
            ranks.all_the_same(5), ranks.all_the_same(rank), ranks.any(rank == 1), ranks.any(False)]
    for kind in (ValueError, OSError):
        for way, number in ((ranks.on_main, 0), (ranks.on_all, 1)):
            try:
                way(lambda number=number, kind=kind: fail_on(number, kind))
            except kind as error:
                seen.append((str(error), error.on_all_ranks))
    torch.save(seen, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def test_an_error_of_one_rank_is_raised_on_all(tmp_path):
    multiprocessing.spawn(on_rank, (str(tmp_path),), nprocs=2)
    errors = [('0 has no room', True), ('1 has no room', True)]
    for rank in range(2):
        assert torch.load(tmp_path / f'{rank}.pth') == [0, rank, True, False, True, False, *errors, *errors]


def test_ranks_that_see_other_images_are_refused():
    class Two(Ranks):
        def gather(self, items):
            return [*items, (3, None)]

    with pytest.raises(ValueError, match='not all ranks see the same images'):
        same_images([1, 2], Two(0, 2, torch.device('cpu')))
    assert same_images([1, 2, 3], Two(0, 2, torch.device('cpu'))) is None


def test_a_process_without_a_gpu_says_so_though_it_is_not_the_first_of_its_node(monkeypatch):
    """The others are well, and would say nothing of it."""
    monkeypatch.setenv('LOCAL_RANK', '2')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(SystemExit, match='error: process 2 of this node has no GPU of its own: there are 2'), \
            errors_in_one_sentence(resumes=True):
        distributed.joined(2, 4, 30)


def test_gradients_in_bf16_that_torch_does_not_have_are_refused_in_a_sentence(monkeypatch):
    class Parallel:
        """Stands in for the DistributedDataParallel of a build for CPUs alone."""

        def __init__(self, module, **options):
            pass

        def register_comm_hook(self, state, hook):
            raise TypeError('BF16 all reduce communication hook required CUDA 11+ and NCCL 2.10+')

    monkeypatch.setattr(distributed, 'DistributedDataParallel', Parallel)
    with pytest.raises(ValueError, match='leave out --bf16_gradients'):
        distributed.in_ddp(None, torch.device('cpu'), True, in_bf16=True)
