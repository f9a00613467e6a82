"""MAE as the trainer sees it: what it answers of `Method` (pretrain/methods.py). Its options are in
pretrain/mae_options.py.
"""
from common.networks.create import drop_path_of
from common.training.compilation import repeated_blocks
from common.training.optim import NO_DECAY
from common.training.schedule import HalfCosine
from common.words import counted
from pretrain import masked_autoencoder_weights
from pretrain.mae import build_mae
from pretrain.mae_options import NAME
from pretrain.mae_recipe import Recipe
from pretrain.method_base import MethodBase
from pretrain.results.meaning import SQUARED_ERROR_OF_PIXELS, LossMeaning, Paper
from pretrain.results.pictures import TARGETS
from pretrain.sparse.geometry import is_accelerated

PAPER = Paper('Kaiming He, Xinlei Chen, Saining Xie, Yanghao Li, Piotr Dollár, Ross Girshick',
              'Masked Autoencoders Are Scalable Vision Learners', 'CVPR 2022', '2111.06377')
IDEA = ('A vision transformer pretrained without labels: most patches of an image are hidden, the transformer encodes '
        'the others, a small decoder reconstructs what was hidden')
LOSSES = {  # by what a run predicts
    'normalised': LossMeaning(
        'normalised', 'The loss is a squared error on normalised cells: near 1 at the start.',
        '1 is what a decoder gets that says nothing', ((1.0, 'a decoder that says nothing'),)),
    'pixels': SQUARED_ERROR_OF_PIXELS}


class MAEMethod(MethodBase):
    """MAE (He et al., CVPR 2022); see `Method` in pretrain/methods.py for what each part is."""
    name = NAME
    recipe = Recipe()
    no_decay = (*NO_DECAY, 'pos_embed')  # The mask token and the class token do get decay, as in the authors' programs.
    title = 'MAE'
    paper = PAPER
    idea = IDEA
    whole_file = "a checkpoint of the authors' program that has the decoder"
    encoder_options = ('target', 'decoder_heads')
    step_options = ('decoder_width', 'decoder_depth', 'masks_per_image')
    trained_beside = 'decoder'  # what of the network is not the encoder, in words

    def curve(self, options):
        return HalfCosine()

    def build(self, options, record=None, cnn=None):
        network = self.build_network(**(options.network if cnn is None else {**options.network, 'model': cnn}), record=record)
        network.recompute(options.recompute)
        return network

    def build_network(self, record, **arguments):
        return build_mae(**arguments)

    def record(self, network):
        return None

    def load_init(self, network, options):
        return masked_autoencoder_weights.load_init(network, options.init, options.model, options.adapt_input_conv)

    def betas(self, network, options):
        return 0.9, options.beta2

    def departures(self, options, precision):
        return self.recipe.departures(options, precision)

    def describe(self, network, options):
        encoder = network.encoder
        trained = [sum(p.numel() for p in module.parameters() if p.requires_grad) for module in (encoder, network)]
        (h, w), (height, width) = encoder.grid, encoder.input_size
        masks = f' in each of its {network.masks_per_image} masks' if network.masks_per_image > 1 else ''
        return [
            ('model', f'{options.model}: {trained[0] / 1e6:.1f} M parameters, '
                      f'and {(trained[1] - trained[0]) / 1e6:.1f} M in {self.trained_beside}'),
            ('cells', f'{encoder.cell_size} px: {h} x {w} = {network.cells} in an image of '
                      f'{height} x {width}, {network.visible_cells} visible{masks}'),
            ('target', TARGETS[options.target]),
            *(('note', note) for note in network.notes),
            ('drop path', drop_path_of(network)),
        ]

    def warnings(self, network, options):
        return network.remarks_on_cells(f'an --input_size of {6 * network.encoder.cell_size} or more')

    def parts_to_compile(self, network):
        """The blocks of the encoder, or all of it where it repeats none, and those of the decoder.

        On the CPU, where ConvMAE has its accelerated form, the network is one part; with `recompute` it is not compiled.
        """
        if is_accelerated(network.accelerated, network.mask_token.device):
            return [] if network.recomputed != 'none' else [network]
        encoder = network.encoder
        blocks = [] if encoder.uncompiled else repeated_blocks(encoder.cnn) or [encoder]
        return [*blocks, *network.decoder_blocks]

    # -- for the commands that read a run ---------------------------------------------------------------------

    def find_init(self, network, state, path='the given object', which=None, adapt=False):
        return masked_autoencoder_weights.find_init(network, state, path, which, adapt)

    def is_whole(self, state):
        return masked_autoencoder_weights.method_of(state) == self.name

    def is_part_of_whole(self, found):
        return masked_autoencoder_weights.method_around(found) == self.name

    def options_in_weights(self, state):
        return masked_autoencoder_weights.options_in_weights(state)

    def settings(self, network, options):
        return [('target', TARGETS[options.target]),
                ('decoder', f'{counted(options.decoder_depth, "transformer block")} of {options.decoder_heads} heads, '
                            f'{options.decoder_width} channels wide'),
                *([('masks', f'{options.masks_per_image} of each image in a step; a cell is visible in one of them')]
                  if options.masks_per_image > 1 else [])]

    def in_words(self, options):
        masks = f', {options.masks_per_image} masks an image' if options.masks_per_image > 1 else ''
        return f'decoder {counted(options.decoder_depth, "block")}, {options.decoder_width} wide{masks}'

    def loss_meaning(self, config):
        return LOSSES[config['target']]
