"""The part of `benchmarks.gpu` that compiles: how long that takes, and what it gains."""
import time

import torch

from benchmarks.gpu_steps import time_in_turns
from benchmarks.gpu_training import Supervised, pretraining_of, supervised_of, synchronise
from common.training.compilation import compiled_at_first_call, repeated_blocks
from pretrain.spark_method import SparKMethod


def compilation(report, sizes, device, model, cache):
    """What compiling the blocks takes, with an empty cache ('cold') or a filled one ('warm'), and what it gains."""
    torch.backends.cudnn.benchmark = True
    training = pretraining_of(model, sizes, device, is_graphed=True)
    seconds = timed_compilation(training)
    report(f'compiling, {cache}', f'{seconds:8.1f} s, the first step in it', seconds=seconds)
    time_in_turns(report, {'compiled, graph': lambda: training}, sizes, device)
    if cache == 'cold':
        eager = pretraining_of(model, sizes, device)
        timed_compilation(eager)
        time_in_turns(report, {'compiled, eager': lambda: eager}, sizes, device)
        supervised = supervised_of(model, sizes, device, is_graphed=True)
        seconds = timed_compilation(supervised)
        report('supervised, compiling', f'{seconds:8.1f} s', seconds=seconds)
        time_in_turns(report, {'supervised, compiled, graph': lambda: supervised}, sizes, device)


def timed_compilation(training):
    """Compile the blocks of what is trained, by its first step. Returns the seconds that this takes."""
    network = training.network
    is_supervised = isinstance(network, Supervised)
    parts = repeated_blocks(network) if is_supervised else SparKMethod().parts_to_compile(network)
    began = time.perf_counter()
    with compiled_at_first_call(parts):
        training.train(0)
        synchronise(training.device)
    seconds = time.perf_counter() - began
    # As before the first step, so that what a step takes in memory is counted as in other cases.
    training.optimizer.zero_grad(set_to_none=True)
    training.optimizer.state.clear()
    return seconds
