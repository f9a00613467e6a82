"""The part of `benchmarks.gpu` that compiles: how long that takes, what it is spent on, and what it gains."""
import time
from contextlib import contextmanager
from functools import partial

import torch
from torch._dynamo.callback import callback_handler
from torch._dynamo.utils import compilation_time_metrics

from benchmarks.gpu_steps import time_in_turns
from benchmarks.gpu_training import pretraining_of, supervised_of, synchronise
from common.training.compilation import compiled_at_first_call, repeated_blocks
from common.words import counted
from pretrain.spark_method import SparKMethod

# torch's names of what compiling is spent on. The first four follow each other; kernels are compiled meanwhile by
# other processes, which are waited for, and of several forms of a kernel the fastest is tried out when it first runs.
PHASES = {
    'tracing': ('bytecode_tracing',),
    'autograd': ('aot_collect_metadata', 'aot_trace_joint_graph', 'min_cut_rematerialization_partition'),
    'lowering': ('GraphLowering.run', 'GraphLowering.codegen'),
    'waiting for the kernels': ('async_compile.wait',),
    'trying out kernels': ('CachingAutotuner.benchmark_all_configs',),
}
LEAST = 0.5  # seconds of all that are named in the JSON


def compilation(report, sizes, device, model, cache):
    """What compiling the blocks takes, with an empty cache ('cold') or a filled one ('warm'), and what it gains.

    Copies of a network find compiled in this process what they share with the first.
    """
    torch.backends.cudnn.benchmark = True

    def timed(case, make, parts_of, compiling):
        training = make()
        with followed(report, compiling) as tell:
            compile_by_first_step(training, parts_of(training.network))
            tell('all of it, with the first step')
        time_in_turns(report, {case: lambda: training}, sizes, device)

    pretraining = partial(pretraining_of, model, sizes, device)
    supervised = partial(supervised_of, model, sizes, device)
    parts_of = SparKMethod().parts_to_compile
    timed('compiled, graph', partial(pretraining, is_graphed=True), parts_of, f'compiling, {cache}')
    if cache == 'cold':
        timed('decoder alone compiled, graph', partial(pretraining, is_graphed=True),
              lambda network: list(network.dense_decoder.dec), 'the decoder alone, found compiled')
        timed('supervised, compiled, graph', partial(supervised, is_graphed=True), repeated_blocks, 'supervised, compiling')
        timed('compiled, eager', pretraining, parts_of, 'all, found compiled')


def compile_by_first_step(training, parts):
    """Compile parts of what is trained, by its first step."""
    with compiled_at_first_call(parts):
        training.train(0)
        synchronise(training.device)
    # As before the first step, so that what a step takes in memory is counted as in other cases.
    training.optimizer.zero_grad(set_to_none=True)
    training.optimizer.state.clear()


@contextmanager
def followed(report, case):
    """Context in which each graph that torch has compiled is told of. Yields a function that tells of the whole."""
    began = time.perf_counter()
    graphs = []
    before = spent()

    def tell(what):
        seconds = time.perf_counter() - began
        spent_on = {name: total - before.get(name, 0) for name, total in spent().items()}
        phases = {phase: sum(spent_on.get(name, 0) for name in names) for phase, names in PHASES.items()}
        report(case, f'{seconds:8.1f} s, {what}: {counted(len(graphs), "graph")}; '
               + ', '.join(f'{phase} {each:.1f} s' for phase, each in phases.items()),
               seconds=seconds, graphs=graphs, phases=phases,
               all={name: round(each, 2) for name, each in spent_on.items() if each >= LEAST})

    def compiled(*_):
        graphs.append(round(time.perf_counter() - began, 2))
        tell('so far')

    callback_handler.register_end_callback(compiled)
    try:
        yield tell
    finally:
        callback_handler.remove_end_callback(compiled)


def spent():
    """Seconds that torch has spent so far on all that it measures in compiling, by its names."""
    return {name: sum(seconds) for name, seconds in compilation_time_metrics.items()}
