"""What is trained: a network with the loss of a classifier, or a linear classifier on its frozen features."""
import torch
import torch.nn.functional as F
from torch import nn

from common.feature_maps import pooled_features
from common.networks.convolutions import safe_convolutions
from common.networks.create import create_cnn, try_size
from common.networks.load import load_classifier, load_whole
from common.seeds import seed_for

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
    """A linear classifier on the frozen, average pooled features of a network (MAE, appendix A.1): BatchNorm
    before it.
    """

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


def build_classifier(options, num_classes):
    """The Classifier, or LinearProbe, of the options, with random weights. Raises ValueError."""
    torch.manual_seed(seed_for('weights', options.seed))
    cnn = create_cnn(options.model, options.in_chans, options.drop_path, num_classes=num_classes)
    try_size(cnn, options.model, options.size, options.in_chans)
    if not options.freeze:
        return Classifier(cnn, options.loss_name)
    with torch.no_grad():
        channels = pooled_features(cnn.eval(), torch.zeros(1, options.in_chans, *options.size)).shape[1]
    return LinearProbe(cnn, options.loss_name, channels, num_classes)


def load_trained(model, state, options, path):
    """Fill a Classifier or LinearProbe with weights of which nothing is missing. Raises ValueError."""
    if options.freeze:
        load_whole(model, state, path)
        return
    loaded = load_classifier(model.cnn, state, options.model, options.size, options.in_chans, options.adapt_input_conv)
    if loaded.missing or loaded.left_out:
        raise ValueError(f'{path} holds no classifier for these classes ({loaded}): there is nothing to '
                         'measure or to predict with. Fine-tune first, with --finetune_from')
