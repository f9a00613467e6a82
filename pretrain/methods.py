"""The methods of pretraining, by the name that --method gives, and what the trainer asks of one.

CONTRIBUTING.md, "To add a method", says how. The options of a method are in pretrain/options.py, which does
not load torch.
"""
from typing import Protocol

from pretrain.a2mim_method import A2MIMMethod
from pretrain.convmae_method import ConvMAEMethod
from pretrain.mae_method import MAEMethod
from pretrain.options import (  # noqa: F401  (users import the last two from here)
    DEFAULT,
    options_of,
    parse_options,
    recommended,
)
from pretrain.recipe import Recipe
from pretrain.results.meaning import Paper
from pretrain.spark_method import SparKMethod


class Method(Protocol):
    """What the trainer (pretrain/pretraining.py) asks of a method, and then what the commands that read a run ask.

    name: the value of --method; it stands in every checkpoint, and must be the same when a run goes on.
    recipe: what chooses batch, epochs and learning rate where they are not given.

    title: what it is called in sentences. paper: where it was published. idea: a sentence on what it does, for model
    cards. whole_file: the files of a whole network that others than this program write, in words.
    encoder_options: names of the method's own options that are needed to read a file of its encoder; they are taken
    from the log beside the file. step_options: names of those that time and memory of a step depend on.
    """
    name: str
    recipe: Recipe
    title: str
    paper: Paper
    idea: str
    whole_file: str
    encoder_options: tuple
    step_options: tuple

    def curve(self, options):
        """The learning rate over the run, a curve of common/training/schedule.py."""

    def build(self, options, record=None, cnn=None):
        """The network, with random initial weights.

        It is an nn.Module whose forward(images, visible=None) returns a loss; it draws `visible` itself where none is
        given, as for a look at its norms or at memory. It has besides `draw_visible(batch, generator, rows)`: LongTensor
        (B, k), ascending, drawn for the whole batch before rows of it are taken; `draw_masks`, as that, of a training step,
        (B, k) or (B, n, k) for n masks an image; `input_size`: (height, width);
        `placed(device)`: itself, as it trains; `uncompiled`: whether torch.compile leaves a part of it alone. The
        commands that read a run ask for all of MaskedNetwork (pretrain/masked_network.py).

        record: what an earlier `record` gave for a network of the same options, from a checkpoint or another rank; it saves
        time, and is not trusted where it does not fit. cnn: the network to be pretrained, if it is not to be made from
        the options. Raises ValueError.
        """

    def record(self, network):
        """Plain data on what took time to find out about the network, for `build`; None if there is nothing."""

    def load_init(self, network, options):
        """Start from the weights of --init, of a file in any known format. Returns a sentence. Raises ValueError."""

    def parameter_groups(self, network, options):
        """The groups of parameters for the optimiser, as `parameter_groups` (common/training/optim.py) makes them."""

    def betas(self, network, options):
        """(beta1, beta2) of the optimiser."""

    def completed(self, options, parts, ranks):
        """The options, completed with what depends on how the ranks divide a batch, where it was not given. parts: the
        number of micro-batches into which a rank cuts its share of a batch (--accum).
        """

    def connect(self, network, options, part, ranks):
        """Have the networks of all ranks work together, if they do, besides averaging gradients.

        Called once, on all ranks, before the first step.

        part: the images that each rank takes at a time.
        """

    def disconnect(self, network):
        """Undo `connect`: the run goes back to a checkpoint, and makes another network."""

    def held_out_loss(self, network, images, visible):
        """The mean loss over these held-out images, 0-dim. It must not depend on which other images are in the batch."""

    def term_sums(self, network):
        """The TermSums (pretrain/term_sums.py) of the network, for the log of an epoch; None if its loss has no terms.

        The trainer ends its steps, saves its sums, and adds them up over all ranks.
        """

    def metrics(self, network, sums):
        """{name: number} for the log of an epoch. sums: those of `term_sums` over all ranks, as a list, or None."""

    def parts_to_compile(self, network):
        """The modules that torch.compile is given, each by itself, none inside another."""

    def exported(self, network):
        """The module that is the result: its state_dict is written at the end of the run."""

    def describe(self, network, options):
        """[(word, text)]: the method's lines at the start of a run; the first says which network it is."""

    def departures(self, options, precision):
        """Texts, of a line each, on how a run differs from the method's paper. precision: 'bf16', 'fp16' or 'fp32'."""

    def warnings(self, network, options):
        """Sentences on what is allowed and seldom works well."""

    def picture(self, network, images, visible, normalisation):
        """A labelled sheet of what the network makes of some images, as one picture (3, H, W) in [0, 1]; its caption."""

    # -- for the commands that read a run ---------------------------------------------------------------------

    def find_init(self, network, state, path='the given object', which=None, adapt=False):
        """Find in a flat dictionary of tensors what fills the network.

        Returns the arguments of `load_found`: (the network itself for a whole one, else its encoder's cnn; Network; names
        of the parameters that may be missing). Arguments as of `find_network`. Raises ValueError.
        """

    def is_whole(self, state):
        """Whether a flat dictionary of tensors holds a whole network of this method."""

    def is_part_of_whole(self, found):
        """Whether a Network of a CNN was found inside of a whole network of this method."""

    def options_in_weights(self, state):
        """{name of an option: value, or None} as far as a flat dictionary of tensors says which values its run had."""

    def settings(self, network, options):
        """[(word, text)]: the method's rows in the recipe of a model card."""

    def masked_images(self, options):
        """A sentence on how hidden cells, called `they`, are shown in masked images; '' if they are empty."""

    def in_words(self, options):
        """What a step of the method is made of, for the title of a plan."""

    def loss_meaning(self, config):
        """LossMeaning of a run's options, a dictionary as logs have it."""

    def trained_besides(self, network):
        """Sentences on what of the encoder was trained besides the layers up to the last feature map."""


METHODS = {method.name: method for method in (SparKMethod(), A2MIMMethod(), ConvMAEMethod(), MAEMethod())}


def method_of(config, path=None):
    """The method of a run's options, a dictionary as checkpoints and logs have it. Raises ValueError for one that is
    not known.

    Runs from before there was a choice are SparK's. path: of what holds the options, for the message.
    """
    name = config.get('method', DEFAULT)
    try:
        options_of(name)
    except ValueError as error:
        raise ValueError(f'{path} is of another program or version: {error}' if path else str(error)) from error
    return METHODS[name]
