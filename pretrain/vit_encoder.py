"""The encoder of MAE: a plain vision transformer that sees the visible patches alone (He et al., CVPR 2022, arXiv
2111.06377, section 3).

The network is timm's VisionTransformer, and nothing in it is changed. The visible patches are cut out of the image, so
that no other is embedded. Each gets the position embedding of its place in the image. Attention runs over the visible
patches, and over the tokens that the network puts in front of them: its class token and registers.

Legend: B batch, C channels, (H, W) image, (h, w) grid of patches, L = h*w, k visible patches an image, D width.
"""
import torch
from timm.layers import PatchDropout, PatchEmbed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pretrain.dense.sizes import no_multiple
from pretrain.masked_network import check_image_size
from pretrain.sparse.compare import VisibleRectangles, relative_error
from pretrain.sparse.parameters import outermost_modules
from pretrain.sparse.probe import check_parameters, copy_of, random_images, unused_parameters
from pretrain.sparse.proof import randomise_scales

NO_DOUBT = 1e-3  # with so small an error in float32, float64 is not asked: a fault is of the size of the features
TOLERANCE = 1e-8  # in float64


class ViTEncoder(nn.Module):
    """A vision transformer that runs on the visible patches of images.

    Args:
        cnn: timm's VisionTransformer, made for images of this size. Nothing in it is changed.
        input_size: (height, width) in pixels.
        in_chans: channels of the images.

    Its tokens are those of the network's `forward_features`. A network that classifies by the mean of its patches has
    no norm after its blocks, but one after the mean (`fc_norm`), which here normalises each token.

    Facts: `grid` (h, w), `cell_size` and `stride` (side of a patch in pixels), `reductions` and `channels` of the
    pyramid, which is one map, `num_prefix_tokens` (in front of the patches), `unused` (names of the parameters that no
    token depends on, of the classifier), `notes` (sentences on what was chosen), `uncompiled` (whether torch.compile
    leaves it alone).

    Raises ValueError for other networks, and for what does not give the tokens of `forward_features` with all patches
    visible; it names the remedy.
    """

    def __init__(self, cnn, input_size, in_chans=3):
        super().__init__()
        check_vit(cnn, input_size, in_chans)
        self.cnn = cnn
        self.input_size = tuple(input_size)
        self.in_chans = in_chans
        self.cell_size = self.stride = cnn.patch_embed.patch_size[0]
        self.grid = tuple(side // self.cell_size for side in self.input_size)
        if cnn.patch_embed.grid_size != self.grid:
            height, width = cnn.patch_embed.img_size
            raise ValueError(f'{type(cnn).__name__} was made for images of {height}x{width}: call its '
                             f'set_input_size({self.input_size}) first')
        self.reductions = (self.stride,)
        self.channels = (cnn.embed_dim,)
        self.num_prefix_tokens = cnn.num_prefix_tokens
        self.uncompiled = False
        self.normalises_patches = isinstance(cnn.norm, nn.Identity) and not isinstance(cnn.fc_norm, nn.Identity)
        self.notes = ('its last norm, fc_norm, normalises each token here, not their mean',) if self.normalises_patches else ()
        self.unused = prove(self)

    def forward(self, images, geometry=None, cnn=None):
        """images (B, C, H, W) -> tokens (B, prefix + k, D).

        geometry: where the visible patches lie; without one all patches are seen, k = L. cnn: another network of the
        same kind.
        """
        check_image_size(images, self)
        cnn = self.cnn if cnn is None else cnn
        tokens = cnn.forward_features(images) if geometry is None else self.visible_tokens(cnn, images, geometry)
        return cnn.fc_norm(tokens) if self.normalises_patches else tokens

    def pyramid(self, images, geometry=None, cnn=None):
        """images (B, C, H, W) -> [(B, D, h, w)], the tokens of patches as a map; with a geometry as a strip, (B, D, k, 1).

        Arguments as of `forward`.
        """
        patches = self(images, geometry, cnn)[:, self.num_prefix_tokens:].transpose(1, 2)
        return [patches.unflatten(2, self.grid) if geometry is None else patches[..., None]]

    def left_out(self):
        """{module: number of parameters} of what no token depends on, and pretraining leaves as it is."""
        return outermost_modules(self.cnn, self.unused)

    def visible_tokens(self, cnn, images, geometry):
        """The tokens of visible patches: what the network's `forward_features` does, in its order."""
        strip = geometry.to_strip(images)  # (B, C, k * patch, patch)
        patches = cnn.patch_embed.norm(cnn.patch_embed.proj(strip).flatten(2).transpose(1, 2))
        in_front, positions = self.prefix_and_positions(cnn)
        patches = patches + positions[0][geometry.visible]
        x = cnn.norm_pre(torch.cat([in_front.expand(len(images), -1, -1), patches], 1))
        recomputes = cnn.grad_checkpointing and torch.is_grad_enabled()
        x = checkpoint_seq(cnn.blocks, x) if recomputes else cnn.blocks(x)
        return cnn.norm(x)

    def prefix_and_positions(self, cnn):
        """What the network puts in front of the patches, (1, prefix, D), and what it adds to them, (1, L, D).

        It is what timm's network makes of patches that are zeros: whether its positions count the tokens in front, and
        which tokens there are, is for it to know.
        """
        h, w = self.grid
        places = (1, h, w) if cnn.dynamic_img_size else (1, h * w)
        zeros = cnn.pos_embed.new_zeros(*places, cnn.embed_dim)
        return cnn._pos_embed(zeros).tensor_split([self.num_prefix_tokens], 1)


# -- what is refused ------------------------------------------------------------------------------------------------------

def check_vit(cnn, input_size, in_chans=3):
    """Raise ValueError unless a network is a plain vision transformer, whose patches fit into images of this size."""
    name = type(cnn).__name__
    if not isinstance(cnn, VisionTransformer):
        raise ValueError(f"--method=mae is for timm's plain vision transformers, and {name} is none: give --method=convmae "
                         'for hybrids such as ConvViT, --method=a2mim for any other transformer, --method=spark for CNNs')
    check_parameters(cnn)
    if not cuts_patches(cnn.patch_embed):
        raise ValueError(f'the patches of {name} are not embedded by one convolution that sees each square patch alone, so '
                         'that they cannot be cut out of the image: give a vision transformer without a stem of '
                         'convolutions, or --method=a2mim')
    channels, patch = cnn.patch_embed.proj.in_channels, cnn.patch_embed.patch_size[0]
    if channels != in_chans:
        raise ValueError(f'{name} takes images of {channels} channels, not {in_chans}: make it with '
                         f'in_chans={in_chans}, or build the method with in_chans={channels}')
    if any(side % patch for side in input_size):
        raise no_multiple(name, input_size, patch)
    if cnn.pos_embed is None:
        raise ValueError(f'{name} has no position embedding (pos_embed), without which it cannot tell where the visible '
                         'patches are: give one with positions, or --method=a2mim')
    if isinstance(cnn.patch_drop, PatchDropout):
        raise ValueError(f'{name} drops patches by itself: make it with patch_drop_rate=0, since --method=mae hides patches')
    if cnn.pos_drop.p:
        raise ValueError(f'{name} has dropout after its positions: make it with pos_drop_rate=0')


def cuts_patches(patch_embed):
    """Whether patches are embedded by one convolution that sees each square patch alone."""
    if not isinstance(patch_embed, PatchEmbed):
        return False
    conv, (height, width) = patch_embed.proj, patch_embed.patch_size
    return (height == width and conv.kernel_size == conv.stride == (height, width)
            and conv.padding in ((0, 0), 'valid') and conv.dilation == (1, 1))


# -- the proof ------------------------------------------------------------------------------------------------------------

def prove(encoder):
    """Raise ValueError unless the encoder gives the network's own tokens with all patches visible, also in another order.

    Everything is tried on a copy, with random scales: branches that start at zero would hide errors. It is tried in
    float32 first. What that does not clear of all doubt is decided in float64. Returns the names of the parameters
    that no token depends on.
    """
    twin = copy_of(encoder.cnn).eval()
    twin.set_grad_checkpointing(False)
    images = random_images(twin, encoder.in_chans, encoder.input_size)[:1]
    randomise_scales(twin)
    unused = unused_parameters(twin, [encoder(images, cnn=twin)])
    order = VisibleRectangles(encoder.grid, [(0, 0)], encoder.grid, images.device).geometry
    error = error_of_tokens(encoder, twin.float(), images.float(), order)
    if not error <= NO_DOUBT:
        error = error_of_tokens(encoder, twin.double(), images.double(), order)
        if not error <= TOLERANCE:
            raise ValueError(f'{type(twin).__name__} does not give its own tokens when it runs on the patches of an image in '
                             f'another order (an error of {error:.0e}): its forward is not that of a plain vision '
                             'transformer. Give --method=a2mim, which runs networks as they are')
    return unused


@torch.no_grad()
def error_of_tokens(encoder, cnn, images, geometry):
    """The relative error of the tokens of all patches, in the order of a geometry."""
    prefix = encoder.num_prefix_tokens
    plain = encoder(images, cnn=cnn)
    index = geometry.visible[..., None].expand(-1, -1, plain.shape[2])
    plain = torch.cat([plain[:, :prefix], plain[:, prefix:].gather(1, index)], 1)
    return relative_error([encoder(images, geometry, cnn)], [plain])
