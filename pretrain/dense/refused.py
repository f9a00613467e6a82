"""Why a network cannot be pretrained densely with a mask token, as exceptions; their messages are for its user."""


class Refused(ValueError):
    """A network that gives no last map to reconstruct from, or has no place for a token."""


class ForwardFailed(Refused):
    """A network that cannot run on an image of this size at all."""
