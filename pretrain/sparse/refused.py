"""Why a network cannot be pretrained on strips, as exceptions; their messages are for its author."""

REMEDY = ('Use a network without it, or give it a rule: @on_plane, from pretrain.sparse, above the function '
          'or forward at fault. Or try --method=a2mim, which runs the network on whole images')


class Refused(ValueError):
    """A network that cannot run on strips."""


class AttentionRefused(Refused):
    """A network with attention: each position looks at all others."""


class ForwardFailed(Refused):
    """A network that cannot run on an image of this size at all."""
