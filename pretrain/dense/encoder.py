"""The dense encoder of A2MIM: any network, with a mask token at one depth (section 4 of the paper).

The network runs as it is, on whole images. A forward hook at one submodule puts the token into its output
(mask_token.py). When the encoder is built, the maps of the network are measured (maps.py, last_map.py), and
the place of the token is found (placement.py) and proven (proof.py).
"""
from functools import partial

import torch
from torch import nn

from common.feature_maps import feature_maps
from common.networks.convolutions import safe_convolutions
from pretrain.dense.last_map import Form
from pretrain.dense.mask_token import MODES, with_token
from pretrain.dense.probe import probe, starts_at_zero
from pretrain.masked_network import check_image_size
from pretrain.sparse.parameters import outermost_modules


class DenseEncoder(nn.Module):
    """A network that runs on whole images, with a mask token at hidden cells.

    Args:
        cnn: the network. Nothing in it is changed but for one forward hook, which does nothing unless this encoder
            runs with hidden cells. A network is for one encoder: take a copy, or its state_dict, for another use.
        input_size: (height, width) in pixels.
        in_chans: channels of the images.
        cell_size: the side of a cell in pixels, a multiple of the total stride R. None is the smallest multiple that
            is at least 32.
        token: 'gain', 'residual' or 'replace', see `with_token`.
        token_at: name of the submodule whose output gets the token; None finds it, see `find_place`.

    mask_token, mask_gain: parameters (1, C, 1, 1); mask_gain is None unless the token is 'gain'.

    Facts, measured: `token_at`, `stride` (R), `cell_size`, `grid` (h, w), `reductions` and `channels` of the
    pyramid from small stride to large, `width` (channels of the last map), `unused` (names of the parameters
    that the last map does not depend on: the classifier and the like), `notes` (sentences on what was
    chosen), `uncompiled` (whether torch.compile leaves it alone).

    Raises ValueError for what does not fit, naming the remedy.
    """

    def __init__(self, cnn, input_size, in_chans=3, cell_size=None, token='gain', token_at=None):
        super().__init__()
        if token not in MODES:
            raise ValueError(f'token is one of {", ".join(MODES)}, not {token!r}')
        found = probe(cnn, tuple(input_size), in_chans, cell_size, token_at)
        self.cnn = cnn
        self.input_size = tuple(input_size)
        self.in_chans = in_chans
        self.token = token
        self.token_at = found.token_at
        self.stride = found.seen.stride
        self.cell_size = found.cell_size
        self.grid = found.grid
        self.reductions = found.seen.reductions
        self.channels = found.seen.channels
        self.width = found.seen.width
        self.unused = found.unused
        self.notes = found.notes
        self.uncompiled = found.seen.last_map.form is Form.PYRAMID and found.seen.last_map.taps is not None
        self._found = found
        self._hidden = None  # the cells that are hidden, while a forward runs
        self._recomputing = [module for module in cnn.modules() if hasattr(module, 'grad_checkpointing')]
        like = next(p for p in cnn.parameters() if p.is_floating_point())
        shape = (1, found.layout.channels, 1, 1)
        self.mask_token = nn.Parameter(like.new_zeros(shape))
        if not starts_at_zero(cnn):
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.mask_gain = nn.Parameter(like.new_full(shape, 1e-6)) if token == 'gain' else None
        cnn.get_submodule(self.token_at).register_forward_hook(self._put_token)

    def forward(self, images, hidden=None):
        """images (B, C, H, W) -> the last map, (B, width, H/R, W/R).

        hidden: (B, 1, h, w) over the cells, 1 where hidden and 0 where visible, in a floating type; None
        leaves the token out. It is an argument, so that activation checkpointing, which runs the forward
        again in the backward pass, sees the same cells.
        """
        run = self._last_map_uncompiled if self.uncompiled else self._last_map
        return self._run(run, images, hidden)

    def pyramid(self, images, hidden=None, cnn=None):
        """images (B, C, H, W) -> maps (B, C_i, H/r_i, W/r_i) of the strides `reductions`, small to large.

        It is the last map of each stride as the network itself gives it, without the norm that may follow in
        `forward`. A network that gives no pyramid has the map of `forward` alone.

        cnn: another network with the same maps, without the token.
        """
        run = partial(self._pyramid, self.cnn if cnn is None else cnn)
        return self._run(run, images, hidden)

    def last_map_of(self, cnn, images):
        """The last map of another network of the same kind, or of this one in another place."""
        return self._found.seen.last_map(cnn, images)

    def left_out(self):
        """{module: number of parameters} of what the last map does not depend on. It is not pretrained."""
        return outermost_modules(self.cnn, self.unused)

    def _run(self, run, images, hidden):
        check_image_size(images, self)
        if hidden is None:
            return run(images)
        if hidden.shape != (len(images), 1, *self.grid):
            raise ValueError(f'hidden must be (B, 1, h, w) = {(len(images), 1, *self.grid)}, 1 where a cell is '
                             f'hidden; got {tuple(hidden.shape)}')
        if any(module.grad_checkpointing for module in self._recomputing):
            raise ValueError("timm's activation checkpointing would run the backward pass without the mask "
                             'token: switch it off with cnn.set_grad_checkpointing(False)')
        self._hidden = hidden
        try:
            return run(images)
        finally:
            self._hidden = None

    def _last_map(self, images):
        return self.last_map_of(self.cnn, images)

    @torch.compiler.disable
    def _last_map_uncompiled(self, images):
        """torch.compile cannot register the hooks of taps."""
        return self._last_map(images)

    def _pyramid(self, cnn, images):
        seen = self._found.seen
        if seen.levels is None:
            return [seen.last_map(cnn, images)]
        with safe_convolutions(images.device):
            maps = feature_maps(cnn, images, seen.last_map.taps)
        return [maps[level] for level in seen.levels]

    def _put_token(self, module, inputs, output):
        """The forward hook at `token_at`."""
        if self._hidden is None:
            return output
        return with_token(output, self._hidden, self.mask_token, self.mask_gain, self.token, self._found.layout)
