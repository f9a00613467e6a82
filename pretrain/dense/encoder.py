"""The dense encoder of A2MIM: any network with a feature map at stride R/2."""
import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn

from common.feature_maps import feature_maps


class DenseEncoder(nn.Module):
    """A network that sees the whole image; behind one of its submodules a learned token is added to what is hidden."""

    def __init__(self, cnn, input_size, in_chans=3, cell_size=None, token='gain', token_at=None):
        super().__init__()
        self.cnn = cnn
        self.input_size = tuple(input_size)
        self.in_chans = in_chans
        self.token = token
        self.notes = ()
        self.uncompiled = False
        self.hidden = None
        image = torch.zeros(2, in_chans, *self.input_size).to(next(cnn.parameters()))
        self.has_head_norm = isinstance(getattr(getattr(cnn, 'head', None), 'norm', None), (nn.LayerNorm, LayerNorm2d))
        mode = cnn.training
        cnn.eval()
        with torch.no_grad():
            last = self.last_map(image)
            maps = self.pyramid(image) if hasattr(cnn, 'forward_intermediates') else [last]
        self.width = last.shape[1]
        self.stride = self.input_size[0] // last.shape[2]
        self.reductions = tuple(self.input_size[0] // m.shape[2] for m in maps)
        self.channels = tuple(m.shape[1] for m in maps)
        self.cell_size = cell_size or max(32, self.stride)
        self.grid = tuple(side // self.cell_size for side in self.input_size)
        self.token_at = token_at or self.place()
        at = cnn.get_submodule(self.token_at)
        channels = []
        handle = at.register_forward_hook(lambda m, i, o: channels.append(o.shape[2] if o.ndim == 3 else o.shape[1]))
        with torch.no_grad():
            self.last_map(image)
        handle.remove()
        zero = isinstance(cnn, timm.models.ConvNeXt)
        token_start = torch.zeros(1, channels[0], 1, 1)
        self.mask_token = nn.Parameter(token_start if zero else nn.init.trunc_normal_(token_start, std=0.02))
        self.mask_gain = nn.Parameter(torch.full_like(token_start, 1e-6)) if token == 'gain' else None
        at.register_forward_hook(self.add_token)
        self.unused = self.find_unused(image)
        cnn.train(mode)

    def find_unused(self, image):
        with torch.enable_grad():
            out = self.last_map(image).sum()
            grads = torch.autograd.grad(out, list(self.cnn.parameters()), allow_unused=True)
        return tuple(n for (n, _), g in zip(self.cnn.named_parameters(), grads) if g is None)

    def place(self):
        if isinstance(self.cnn, timm.models.ConvNeXt):
            return 'stages.3.downsample'
        if hasattr(self.cnn, 'patch_embed'):
            return 'patch_embed'
        if hasattr(self.cnn, 'layer3'):
            return 'layer3'
        return f'stages.{len(self.cnn.stages) - 2}'

    def add_token(self, module, inputs, features):
        if self.hidden is None:
            return None
        token, gain = self.mask_token, self.mask_gain
        if features.ndim == 3:
            side = round(features.shape[1] ** 0.5)
            m = F.interpolate(self.hidden, (side, side)).flatten(2).transpose(1, 2)
            token, gain = (None if v is None else v.flatten()[None, None] for v in (token, gain))
        else:
            m = F.interpolate(self.hidden, features.shape[2:])
        m = m.to(features.dtype)
        if self.token == 'gain':
            return features * (1 - m) + features * m * gain + token * m
        if self.token == 'residual':
            return features + token * m
        return features * (1 - m) + token * m

    def last_map(self, images):
        x = self.cnn.forward_features(images)
        if x.ndim == 3:
            x = x[:, self.cnn.num_prefix_tokens:]
            side = round(x.shape[1] ** 0.5)
            return x.transpose(1, 2).unflatten(2, (side, side))
        return self.cnn.head.norm(x) if self.has_head_norm else x

    def forward(self, images, hidden=None):
        self.hidden = hidden
        out = self.last_map(images)
        self.hidden = None
        return out

    def pyramid(self, images, hidden=None):
        self.hidden = hidden
        maps = {m.shape[2]: m for m in feature_maps(self.cnn, images)}
        self.hidden = None
        return list(maps.values())
