"""Rules for functions and layers of your own: how they run on strips (see pretrain/sparse/plane.py)."""
import torch
from torch.overrides import wrap_torch_function


def on_plane(function, hidden=0.0):
    """Decorator for a function, or a `forward`, of your own that looks beyond a position in a way of its own:

        class Shift(nn.Module):
            @on_plane
            def forward(self, x):          # x (B, C, H, W): the image plane, hidden positions 0
                return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], 3)

    On strips its first positional tensor becomes a canvas whose hidden positions hold `hidden`, and its
    result becomes a strip again; elsewhere nothing changes. It must treat hidden positions as it does its
    padding, look through one window only, and contain no norm and no mean over the image, which they would enter. What
    is wrong in this is refused when the network is wrapped. `@on_plane` takes hidden = 0; for another value
    write `@functools.partial(on_plane, hidden=VALUE)` above the function. Raises ValueError when it is called on
    strips without a positional tensor.
    """
    def rule(plane, _, *args, **kwargs):
        index = next((i for i, argument in enumerate(args) if torch.is_tensor(argument)), None)
        if index is None:
            raise ValueError('calls what @on_plane stands above without a positional tensor: give the '
                             'feature map as one')

        def on_canvas(canvas):
            return function(*args[:index], canvas, *args[index + 1:], **kwargs)

        return plane.run(on_canvas, args[index], hidden)

    overridable = wrap_torch_function(lambda *args, **kwargs: args)(function)
    overridable.plane_rule = rule  # where `rule_of` in pretrain/sparse/rules.py finds it
    return overridable
