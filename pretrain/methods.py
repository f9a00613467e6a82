"""The methods of pretraining, by the name that --method gives, and what the trainer asks of one.

CONTRIBUTING.md, "To add a method", says how. The options of a method are in pretrain/options.py, which does
not load torch.
"""
from typing import Protocol

from pretrain.a2mim_method import A2MIMMethod
from pretrain.options import (  # noqa: F401  (users import the last two from here)
    DEFAULT,
    options_of,
    parse_options,
    recommended,
)
from pretrain.spark_method import SparKMethod


class Method(Protocol):
    """What the trainer (pretrain/pretraining.py) asks of a method.

    The commands that read a run (reconstruct, features, export, playground, report, plan) know SparK alone; what ties them
    to it is in pretrain/saved.py, pretrain/results/read_log.py and pretrain/plan.py.

    name: the value of --method; it stands in every checkpoint, and must be the same when a run goes on.
    learning_rate_ends: the learning rate at the first and at the last step, as shares of the peak.
    no_decay: names of parameters that get no weight decay, besides all one-dimensional ones
    (`parameter_groups`).
    """
    name: str
    learning_rate_ends: tuple
    no_decay: tuple

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

    def connect(self, network, options, part, ranks):
        """Have the networks of all ranks work together, if they do, besides averaging gradients. Called once, on all ranks,
        before the first step.

        part: the images that each rank takes at a time.
        """

    def held_out_loss(self, network, images, visible):
        """The loss that is measured on held-out images, 0-dim: the mean over these, whichever others there are."""

    def parts_to_compile(self, network):
        """The modules that torch.compile is given, each by itself, none inside another."""

    def exported(self, network):
        """The module that is the result: its state_dict is written at the end of the run."""

    def describe(self, network, options):
        """[(word, text)]: the method's lines at the start of a run; the first says which network it is."""

    def warnings(self, network, options):
        """Sentences on what is allowed and seldom works well."""

    def picture(self, network, images, visible, normalisation):
        """A labelled sheet of what the network makes of some images, as one picture (3, H, W) in [0, 1]; its
        caption.
        """


METHODS = {method.name: method for method in (SparKMethod(), A2MIMMethod())}


def method_of(config):
    """The method of a run's options, a dictionary as checkpoints have it. Raises ValueError for one that is
    not known.

    Runs from before there was a choice are SparK's.
    """
    name = config.get('method', DEFAULT)
    options_of(name)
    return METHODS[name]
