"""A2MIM as the trainer sees it: what it answers of `Method` (pretrain/methods.py). Its options are in
pretrain/a2mim_options.py.
"""
import copy

import torch

from common.networks.create import drop_path_of
from common.training.compilation import repeated_blocks
from common.training.optim import NO_DECAY, parameter_groups
from common.training.schedule import CosineToFloor, Drop
from common.words import first_of
from pretrain import a2mim_weights
from pretrain.a2mim import build_a2mim
from pretrain.a2mim_options import NAME, SIMMIMS
from pretrain.a2mim_recipe import Recipe, departures, with_group
from pretrain.dense.sizes import fitting_cells
from pretrain.fourier_groups import GroupMeans
from pretrain.method_base import MethodBase
from pretrain.results.meaning import LossMeaning, Paper
from pretrain.results.pictures import TARGETS

PAPER = Paper('Siyuan Li, Di Wu, Fang Wu, Zelin Zang, Stan Z. Li',
              'Architecture-Agnostic Masked Image Modeling: From ViT back to CNN', 'ICML 2023', '2205.13943')
IDEA = ('A network pretrained without labels: most cells of an image are hidden under its mean colour, a learned token '
        'marks them deep in the network, and one convolution predicts their pixels from its last feature map')
ERROR_WORDS = {'focal_l1': 'focal L1 error', 'l1': 'L1 error', 'mse': 'squared error'}  # by the option spatial_loss

TOKEN = 'mask_token', 'mask_gain'
LOWEST_LR = 1e-5  # of a cosine, whatever its peak
SCHEDULES = {'cosine': f'a cosine to {LOWEST_LR:g}',
             'drop': 'the peak, and a tenth of it for the last eighth of the epochs'}


class A2MIMMethod(MethodBase):
    """A2MIM (Li et al., ICML 2023); see `Method` in pretrain/methods.py for what each part is."""
    name = NAME
    recipe = Recipe()
    no_decay = (*NO_DECAY, *TOKEN, 'cls_token', 'pos_embed', 'relative_position_bias_table')
    title = 'A2MIM'
    paper = PAPER
    idea = IDEA
    whole_file = 'a file of the authors that has the decoder'
    encoder_options = ('token_at', 'token')
    step_options = ('fourier',)

    def curve(self, options):
        """The published runs of ViTs had 800 epochs, and a tenth of the rate from epoch 700 on: 7/8 of any length."""
        return Drop(at=(7 / 8,)) if options.lr_schedule == 'drop' else CosineToFloor(LOWEST_LR)

    def build(self, options, record=None, cnn=None):
        a2mim = build_a2mim(**(options.network if cnn is None else {**options.network, 'model': cnn}))
        a2mim.recompute(options.recompute)
        return a2mim

    def record(self, network):
        return None

    def load_init(self, network, options):
        return a2mim_weights.load_init(network, options.init, options.model, options.adapt_input_conv)

    def parameter_groups(self, network, options):
        """No decay on one-dimensional parameters, biases, token, gain and what ViTs learn of positions; token
        and gain have a share of the learning rate.

        This departs from the original, whose regular expressions on names have accidents: BatchNorms of
        ResNets' downsampling and the weights of ConvNeXts' LayerNorms do get decay there, and so does the
        gain in some runs, at the full rate.
        """
        scales = dict.fromkeys(TOKEN, options.token_lr_scale)
        return parameter_groups(network, options.weight_decay, self.no_decay, scales)

    def betas(self, network, options):
        return 0.9, options.beta2

    def completed(self, options, parts, ranks):
        return with_group(options, parts, ranks)

    def connect(self, network, options, part, ranks):
        if options.fourier == 'focal':
            network.group_means = GroupMeans(options.fourier_group, part, ranks.size, options.stall_minutes)

    def disconnect(self, network):
        if network.group_means is not None:
            network.group_means.close()

    def held_out_loss(self, network, images, visible):
        """The spatial term: that on spectra depends on which images are averaged."""
        return network.terms(images, visible)['spatial']

    def term_sums(self, network):
        return network.term_sums

    def metrics(self, network, sums):
        """The mean of each term of the loss, before its weight, and that of the token's gain."""
        passes, spatial, frequency = sums
        gain = network.encoder.mask_gain
        return {'loss_spatial': spatial / passes if passes else None,
                'loss_frequency': frequency / passes if passes and network.fourier != 'none' else None,
                **({} if gain is None else {'token_gain': gain.mean().item()})}

    def describe(self, network, options):
        encoder = network.encoder
        trained = [sum(p.numel() for p in module.parameters() if p.requires_grad) for module in (encoder.cnn, network)]
        (h, w), (height, width) = encoder.grid, encoder.input_size
        return [
            ('model', f'{options.model}: {trained[0] / 1e6:.1f} M parameters, '
                      f'and {(trained[1] - trained[0]) / 1e6:.1f} M in token and decoder'),
            ('cells', f'{encoder.cell_size} px: {h} x {w} = {network.cells} in an image of '
                      f'{height} x {width}, {network.visible_cells} visible'),
            ('token', f'{options.token}, after {encoder.token_at}'),
            ('loss', loss_in_words(options)),
            *(('note', note) for note in encoder.notes),
            ('drop path', drop_path_of(network)),
            ('schedule', SCHEDULES[options.lr_schedule]),
        ]

    def departures(self, options, precision):
        return departures(options, precision)

    def warnings(self, network, options):
        encoder = network.encoder
        smaller = [cell for cell in fitting_cells(encoder.input_size, encoder.stride) if cell < encoder.cell_size]
        remedy = f'--cell_size={smaller[0]}' if smaller else f'an --input_size of {6 * encoder.cell_size} or more'
        return network.remarks_on_cells(remedy)

    def parts_to_compile(self, network):
        """The blocks of the network, or all of it where it repeats none."""
        if network.encoder.uncompiled:
            return []
        return repeated_blocks(network.encoder.cnn) or [network.encoder]

    # -- for the commands that read a run ---------------------------------------------------------------------

    def find_init(self, network, state, path='the given object', which=None, adapt=False):
        return a2mim_weights.find_init(network, state, path, which, adapt)

    def is_whole(self, state):
        return a2mim_weights.is_whole(state)

    def is_part_of_whole(self, found):
        return a2mim_weights.is_part_of_whole(found)

    def options_in_weights(self, state):
        kind = a2mim_weights.kind_of_token(state)
        if kind == SIMMIMS['token']:  # an official file of SimMIM; ours do not tell this kind
            return dict(SIMMIMS)
        return {} if kind is None else {'token': kind}

    def settings(self, network, options):
        return [('target', TARGETS['pixels']), ('token', f'{options.token}, after {network.encoder.token_at}'),
                ('hidden pixels', "the image's mean colour" if options.image_fill == 'mean' else 'as they are'),
                ('loss', loss_in_words(options))]

    def masked_images(self, options):
        if options.image_fill == 'none':
            return 'The masked images are the images: the token alone hides features (--image_fill=none).'
        return 'In the masked images they have the mean colour of the image, which is what the network sees there.'

    def in_words(self, options):
        return f'token {options.token}, loss on spectra {options.fourier}'

    def loss_meaning(self, config):
        options = {'spatial_loss': 'focal_l1', 'fourier': 'focal', 'fourier_weight': 0.5, **config}
        error = f'the {ERROR_WORDS[options["spatial_loss"]]} of hidden pixels, which --mean and --std normalise'
        if options['fourier'] == 'none' or not options['fourier_weight']:
            return LossMeaning('pixels', f'The loss is {error}. How large it is depends on the images.')
        return LossMeaning('pixels', f'The loss is {error}, and {options["fourier_weight"]:g} times an error of spectra. How '
                           'large both are depends on the images. The held-out loss is the first of them alone.',
                           title='Loss', of_cells='spatial loss')

    def trained_besides(self, network):
        """Layers after the pyramid, which the last map, and so the decoder, depends on: a last convolution or norm."""
        # On a copy, in training mode: in evaluation some networks keep what they computed of their parameters.
        encoder = copy.deepcopy(network.encoder).train()
        names, parameters = zip(*encoder.cnn.named_parameters())
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            image = torch.randn(2, encoder.in_chans, *encoder.input_size)
            used = [p.requires_grad_() for p in parameters]
            gradients = torch.autograd.grad(encoder.pyramid(image)[-1].sum(), used, allow_unused=True)
        behind = dict.fromkeys(name.rpartition('.')[0] for name, gradient in zip(names, gradients)
                               if gradient is None and name not in encoder.unused)
        if not behind:
            return []
        return [f'A2MIM also trained what comes after the last feature map: {first_of([f"`{name}`" for name in behind], 4)}. '
                'It is part of the network; SparK leaves it as it was.']


def loss_in_words(options):
    group = 'the images of a step' if options.fourier_group is None else f'{options.fourier_group} images'
    fourier = {'focal': f'{options.fourier_weight:g} x focal loss on spectra, averaged over {group}',
               'spectral': f'{options.fourier_weight:g} x loss on the spectra of each image', 'none': 'none on spectra'}
    return f'{options.spatial_loss} on hidden pixels; {fourier[options.fourier]}'
