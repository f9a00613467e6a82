"""Networks that the tests of the sparse encoder share."""
from torch import nn


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Pyramid(nn.Module):
    """A network of stride 8 with one module of choice inside."""

    def __init__(self, odd, at=1):
        super().__init__()
        self.conv = nn.ModuleList(nn.Conv2d(c, 12, 2, 2) for c in (3, 12, 12))
        self.odd, self.at = odd, at

    def forward_intermediates(self, x, intermediates_only=False):
        maps = []
        for i, conv in enumerate(self.conv):
            x = conv(x)
            maps.append(self.odd(x) if i == self.at else x)
        return maps
