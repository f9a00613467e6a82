"""Why a network cannot be pretrained on strips, as exceptions; their messages are for its author."""

REMEDY = ('Use a network without it, or give it a rule: @on_plane, from pretrain.sparse, above the function '
          'or forward at fault. Or try --method=a2mim, which runs the network on whole images')
UNKNOWN = '; visible cells would mix with others in a way that is not understood.'
WITHOUT_ATTENTION = ('Try --method=a2mim, which runs the network on whole images; or use a network whose attention is over '
                     'all positions and knows no grid, such as convvit_base or caformer_s18, or one without attention '
                     '(docs/coverage.md)')
PLAIN_TRANSFORMER = ('is a plain transformer: its feature maps are all of one size, and a pyramid of maps of several sizes '
                     'is needed here. Try --method=mae, which is made for plain transformers, or --method=a2mim')


class Refused(ValueError):
    """A network that cannot run on strips."""


class AttentionRefused(Refused):
    """A network whose attention differs on visible cells, or is not understood."""


class ForwardFailed(Refused):
    """A network that cannot run on an image of this size at all."""
