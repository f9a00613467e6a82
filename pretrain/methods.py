"""The methods of pretraining, by the name that --method gives, and what the trainer asks of one.

CONTRIBUTING.md, "To add a method", says how.
"""
import sys
from typing import Protocol

from common.cli import parse, renewed
from pretrain.spark_method import SparKMethod


class Method(Protocol):
    """What the trainer (pretrain/pretraining.py) asks of a method.

    The commands that read a run (reconstruct, features, export, playground, report, plan) know SparK alone; what ties them
    to it is in pretrain/saved.py, pretrain/results/read_log.py and pretrain/plan.py.

    name: the value of --method; it stands in every checkpoint, and must be the same when a run goes on.
    title: one line for --help. options: the class of its options, a frozen dataclass derived from
    PretrainingOptions. learning_rate_ends: the learning rate at the first and at the last step, as shares of
    the peak. no_decay: names of parameters that get no weight decay, besides all one-dimensional ones
    (`parameter_groups`).
    """
    name: str
    title: str
    options: type
    learning_rate_ends: tuple
    no_decay: tuple

    def recipe(self, given):
        """What the method's authors use for the options that are given, as a dictionary of options."""

    def build(self, options, record=None):
        """The network, with drawn weights.

        It is an nn.Module whose forward(images, visible=None) returns a loss; it draws `visible` itself where none is
        given, as for a look at its norms or at memory. It has besides `draw_visible(batch, generator, rows)`: LongTensor
        (B, k), ascending, drawn for the whole batch before rows of it are taken; `input_size`: (height, width);
        `placed(device)`: itself, as it trains; `uncompiled`: whether torch.compile leaves a part of it alone.

        record: what an earlier `record` gave for a network of the same options, from a checkpoint or another rank; it saves
        time, and is not trusted where it does not fit. Raises ValueError.
        """

    def record(self, network):
        """Plain data on what took time to find out about the network, for `build`; None if there is nothing."""

    def load_init(self, network, options):
        """Start from the weights of --init, of a file in any known format. Returns a sentence. Raises
        ValueError.
        """

    def betas(self, network, options):
        """(beta1, beta2) of the optimiser."""

    def parts_to_compile(self, network):
        """The modules that torch.compile is given, each by itself, none inside another."""

    def exported(self, network):
        """The module that is the result: its state_dict is written at the end of the run."""

    def describe(self, network, options):
        """[(word, text)]: the method's lines at the start of a run; the first says which network it is."""

    def warnings(self, network, options):
        """Sentences on what is allowed and seldom works well."""

    def picture(self, network, images, visible, normalisation):
        """Rows of pictures of what the network makes of some images, as one picture (3, H, W) in [0, 1];
        their caption.
        """


METHODS = {method.name: method for method in (SparKMethod(),)}


def method_of(config):
    """The method of a run's options, a dictionary as checkpoints have it. Raises ValueError for one that is
    not known.

    Runs from before there was a choice are SparK's.
    """
    name = config.get('method', SparKMethod.name)
    if name not in METHODS:
        raise ValueError(f'method is one of {", ".join(METHODS)}, not {name}')
    return METHODS[name]


def recommended(**given):
    """Options from Python as the command line would have them.

    In rising order: the method's defaults, its recipe for the model, what is given. Raises ValueError.
    """
    method = method_of(given)
    given = renewed(method.options, given)
    return method.options(**{**method.recipe(given), **given})


def parse_options(argv=None, program='pretraining'):
    """The options of a command line, of the method that it names. Exits with code 2 and one sentence if they
    are wrong.

    program: what the command is called in its help.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name = SparKMethod.name
    for flag, value in zip(argv, [*argv[1:], '']):
        if flag == '--method':
            name = value
        elif flag.startswith('--method='):
            name = flag.partition('=')[2]
    if name not in METHODS:
        sys.stderr.write(f'error: --method is one of {", ".join(METHODS)}, not {name or "empty"}\n')
        sys.exit(2)
    method = METHODS[name]
    return parse(method.options, program, method.title, argv, method.recipe)
