"""A stand-in for a segmenter, which takes no time, and images with masks in memory."""
import torch
from torch import nn


class Seeing(nn.Module):
    """scores(images): logits of `classes` classes by a pixel's neighbours and by the mean of what is seen, so that
    they depend on the window, and on which side is left.

    shapes: of the images that it has seen.
    """

    def __init__(self, classes=5, in_chans=3, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.near = nn.Conv2d(in_chans, classes, 3, padding=1, bias=False)
            self.far = nn.Conv2d(in_chans, classes, 1, bias=False)
            self.norm = nn.BatchNorm2d(classes)
        self.shapes = []

    def scores(self, images):
        self.shapes.append(tuple(images.shape))
        logits = 4 * self.near(images) + 8 * self.far(images.mean((2, 3), keepdim=True))
        return self.norm(logits).float()
