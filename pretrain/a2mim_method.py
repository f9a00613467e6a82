"""A2MIM as the trainer sees it: what it answers of `Method` (pretrain/methods.py). Its options are in
pretrain/a2mim_options.py.
"""
from common.networks.create import drop_path_of
from common.training.compilation import repeated_blocks
from common.training.optim import NO_DECAY
from pretrain.a2mim import build_a2mim
from pretrain.a2mim_options import A2MIM
from pretrain.a2mim_weights import load_init
from pretrain.fourier_groups import GroupMeans
from pretrain.results.pictures import in_columns, views


class A2MIMMethod:
    """A2MIM (Li et al., ICML 2023); see `Method` in pretrain/methods.py for what each part is."""
    name = A2MIM
    learning_rate_ends = (0.0, 0.01)
    no_decay = (*NO_DECAY, 'mask_token', 'mask_gain')

    def build(self, options, record=None):
        # Groups of images are made by `connect`: what is tried on a few images before has none.
        a2mim = build_a2mim(**{**options.network, 'fourier_group': None})
        a2mim.recompute(options.recompute)
        return a2mim

    def record(self, network):
        return None

    def load_init(self, network, options):
        return load_init(network, options.init, options.model, options.adapt_input_conv)

    def betas(self, network, options):
        return 0.9, 0.999

    def connect(self, network, options, part, ranks):
        if options.fourier == 'focal' and options.fourier_group is not None:
            network.group_means = GroupMeans(options.fourier_group, part, ranks.size)

    def held_out_loss(self, network, images, visible):
        """The spatial term: that on spectra depends on which images are averaged."""
        return network.terms(images, visible)['spatial']

    def exported(self, network):
        return network.encoder.cnn

    def describe(self, network, options):
        encoder = network.encoder
        trained = [sum(p.numel() for p in module.parameters() if p.requires_grad) for module in (encoder.cnn, network)]
        (h, w), (height, width) = encoder.grid, encoder.input_size
        fourier = {'focal': f'{options.fourier_weight:g} x focal loss on spectra, averaged over {options.fourier_group} images',
                   'spectral': f'{options.fourier_weight:g} x loss on the spectra of each image', 'none': 'none on spectra'}
        return [
            ('model', f'{options.model}: {trained[0] / 1e6:.1f} M parameters, '
                      f'and {(trained[1] - trained[0]) / 1e6:.1f} M in token and decoder'),
            ('cells', f'{encoder.cell_size} px: {h} x {w} = {network.cells} in an image of '
                      f'{height} x {width}, {network.visible_cells} visible'),
            ('token', f'{options.token}, behind {encoder.token_at}'),
            ('loss', f'{options.spatial_loss} on hidden pixels; {fourier[options.fourier]}'),
            *(('note', note) for note in encoder.notes),
            ('drop path', drop_path_of(network)),
        ]

    def warnings(self, network, options):
        return iter(())

    def parts_to_compile(self, network):
        """The blocks of the network, or all of it where it repeats none."""
        if network.encoder.uncompiled:
            return []
        return repeated_blocks(network.encoder.cnn) or [network.encoder]

    def picture(self, network, images, visible, normalisation):
        return in_columns(views(network, images, visible, normalisation)), 'input, masked, reconstruction'
