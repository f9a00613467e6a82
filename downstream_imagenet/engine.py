"""What is trained and how it is measured: the loss of a classifier, and its accuracy with each image counted once."""
import torch
import torch.nn.functional as F
from torch import nn

from common.feature_maps import feature_maps
from common.networks.convolutions import safe_convolutions
from downstream_imagenet.data import labelled_once

LOSSES = {'bce': F.binary_cross_entropy_with_logits, 'ce': F.cross_entropy}  # of soft targets (B, K)


class Classifier(nn.Module):
    """A timm network with its loss: forward(images, targets (B, K)) -> 0-dim tensor, in fp32."""

    def __init__(self, cnn, loss):
        super().__init__()
        self.cnn, self.loss = cnn, LOSSES[loss]

    def logits(self, images):
        with safe_convolutions(images.device):
            return self.cnn(images)

    def forward(self, images, targets):
        return self.loss(self.logits(images).float(), targets)


class LinearProbe(Classifier):
    """A linear classifier on the frozen, average pooled features of a network (MAE, appendix A.1): BatchNorm before it."""

    def __init__(self, cnn, loss, channels, num_classes):
        super().__init__(cnn.requires_grad_(False), loss)
        self.norm, self.fc = nn.BatchNorm1d(channels, eps=1e-6, affine=False), nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def train(self, mode=True):
        super().train(mode)
        self.cnn.eval()
        return self

    def logits(self, images):
        with torch.no_grad():
            features = pooled_features(self.cnn, images)
        return self.fc(self.norm(features))


def pooled_features(cnn, images):
    """(B, C): the mean over positions of the last feature map that pretraining trains, before any layers of the head."""
    if hasattr(cnn, 'forward_intermediates'):
        return feature_maps(cnn, images)[-1].mean((2, 3))
    return cnn.forward_features(images).mean((2, 3))


@torch.no_grad()
def evaluate(model, images, number, batch, ranks, autocast, workers=0, warn=print, go_on=None):
    """{'top1', 'top5' in percent, 'loss', 'images'} over a data set, each image once, on any number of ranks.

    model: a Classifier. images: an Augmented data set with labels of `number` classes; what cannot be read is left out, and
    warn(text) told. batch: images at a time on a rank. go_on() -> whether to go on with the next batch; if not, the figures
    mean nothing.
    """
    ranks.broadcast(model.buffers())  # without sync_bn the ranks' running statistics differ: rank 0's are those saved
    mode = model.training
    model.eval()
    total = torch.zeros(4, dtype=torch.float64, device=ranks.device)
    for x, classes in labelled_once(images, number, batch, workers, ranks, warn, go_on):
        with autocast():
            logits = model.logits(x).float()
        total += counts(logits, classes)
    model.train(mode)
    top1, top5, loss, count = ranks.all_reduce(total).tolist()
    if not count:
        raise ValueError('none of the validation images can be read')
    return {'top1': 100 * top1 / count, 'top5': 100 * top5 / count, 'loss': loss / count, 'images': int(count)}


def counts(logits, classes):
    """Right at the first guess, within five, sum of the cross-entropies, number: float64 (4,)."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = best == classes[:, None]
    return torch.stack([right[:, 0].sum(), right.any(1).sum(), F.cross_entropy(logits, classes, reduction='sum'),
                        torch.tensor(len(classes), device=logits.device)]).double()
