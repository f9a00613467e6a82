"""What is trained: a network with the loss of a classifier, or a linear classifier on its frozen features."""
import torch
import torch.nn.functional as F
from torch import nn

from common.feature_maps import pooled_features
from common.networks.convolutions import safe_convolutions
from common.networks.create import create_cnn, try_size
from common.networks.load import load_classifier, load_whole
from common.seeds import seed_for


def bce_sum(logits, targets):
    """Binary cross-entropy, its sum over the classes and mean over the images."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction='sum') / len(logits)


# of logits (B, K) and soft targets (B, K)
LOSSES = {'bce': F.binary_cross_entropy_with_logits, 'bce_sum': bce_sum, 'ce': F.cross_entropy}


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
    """A linear classifier on the frozen, average pooled features of a network.

    has_norm: whether there is a BatchNorm before it (MAE, appendix A.1).
    """

    def __init__(self, cnn, loss, channels, num_classes, has_norm=True):
        super().__init__(cnn.requires_grad_(False), loss)
        self.norm = nn.BatchNorm1d(channels, eps=1e-6, affine=False) if has_norm else nn.Identity()
        self.fc = nn.Linear(channels, num_classes)
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
    cnn = create_cnn(options.model, options.in_chans, options.drop_path, num_classes=num_classes,
                     input_size=options.size)
    out = try_size(cnn, options.model, options.size, options.in_chans)
    if not options.freeze and (not torch.is_tensor(out) or out.shape != (1, num_classes)):
        gives = tuple(out.shape) if torch.is_tensor(out) else f'a {type(out).__name__}'
        raise ValueError(f'{options.model} gives {gives} for an image, not the {num_classes} numbers of a classifier: the '
                         'function that is registered must hand num_classes on to the network, and forward return logits')
    if options.evaluated_size != options.size:
        try_size(cnn, options.model, options.evaluated_size, options.in_chans, '--test_size')
    if not options.freeze:
        if options.head_std is not None:
            start_classifier(cnn, options.head_std)
        return Classifier(cnn, options.loss_name)
    with torch.no_grad():
        channels = pooled_features(cnn.eval(), torch.zeros(1, options.in_chans, *options.size)).shape[1]
    return LinearProbe(cnn, options.loss_name, channels, num_classes, options.probe_norm)


def start_classifier(cnn, std):
    """Draw the weights of a network's classifier from a normal distribution, and set its bias to 0.

    The classifier is what timm names as such, or the last linear layer. Raises ValueError if there is none.
    """
    if hasattr(cnn, 'get_classifier'):
        named = cnn.get_classifier()
        parts = named if isinstance(named, tuple) else (named,)  # two of a distilled transformer
        layers = [layer for part in parts for layer in part.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    else:
        layers = [layer for layer in cnn.modules() if isinstance(layer, nn.Linear)][-1:]
    if not layers:
        raise ValueError(f'--head_std is for a linear classifier, and {type(cnn).__name__} has none: give --recipe=paper '
                         'or auto, which leave it as it is')
    for layer in layers:
        nn.init.normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def load_trained(model, state, options, path):
    """Fill a Classifier or LinearProbe with weights of which nothing is missing. Raises ValueError."""
    if options.freeze:
        load_whole(model, state, path)
        return
    loaded = load_classifier(model.cnn, state, options.model, options.size, options.in_chans, options.adapt_input_conv)
    if loaded.missing or loaded.left_out:
        raise ValueError(f'{path} holds no classifier for these classes ({loaded}): there is nothing to '
                         'measure or to predict with. Fine-tune first, with --finetune_from')
