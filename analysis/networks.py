"""The networks of a command line, and the weights that are put into them."""
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from torch import nn

from common.feature_maps import pooled_features
from common.networks.classifier import classifier_entries, num_classes_in
from common.networks.create import create_cnn, try_size
from common.networks.guess import guess_model
from common.networks.keys import unwrap
from common.networks.load import load_classifier, load_whole, read_weights
from common.paths import require_weights
from common.reliability.checkpoint import read_plain
from common.seeds import seed_for
from common.words import counted, first_of

REMEDY = ('fine-tune it (bash downstream_imagenet/main.sh NAME --finetune_from=FILE), or train a linear '
          'classifier on its frozen features (python -m downstream_imagenet.linear --mae --name=NAME '
          '--weights=FILE), and give the *_1kfinetuned_best.pth that this writes')


@dataclass(frozen=True)
class Asked:
    """A network that is asked for. legend: its name in the figures. model: timm's name. weights: FILE,
    FILE:KEY, 'timm', or None for random ones.
    """
    legend: str
    model: str
    weights: str | None


@dataclass(frozen=True)
class Opened:
    """A network with its weights, in evaluation mode. module(images) returns logits if it is a classifier.

    classes: the names of its classes in their order, None if they are not known. num_classes: their number.
    notes: what is to be said. digest: a text that is the same for the same weights.
    """
    module: nn.Module
    classes: list | None
    num_classes: int | None
    notes: tuple
    digest: str


class Probe(nn.Module):
    """A network and the linear classifier on its frozen features, as `downstream_imagenet.linear --mae` writes them.

    has_norm: whether there is a BatchNorm in front of the classifier.
    """

    def __init__(self, cnn, channels, num_classes, has_norm):
        super().__init__()
        self.cnn = cnn
        self.norm = nn.BatchNorm1d(channels, eps=1e-6, affine=False) if has_norm else nn.Identity()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images):
        return self.fc(self.norm(pooled_features(self.cnn, images)))


def asked(words, names=None):
    """Read words MODEL, MODEL=timm and MODEL=FILE. Returns a list of Asked.

    names: for the legend, as many; if None they are made of the words. Raises ValueError.
    """
    if names is not None and len(names) != len(words):
        raise ValueError(f'--names has {counted(len(names), "name")} for {counted(len(words), "network")}: '
                         'give one for each, with commas between')
    found = []
    for place, word in enumerate(words):
        model, _, weights = word.partition('=')
        refuse_path(word, model, weights)
        require_weights(weights or None)
        short = f'{Path(weights).parent.name}/{Path(weights).name}'.lstrip('/')
        made = f'{model}, ' + ('untrained' if not weights else 'timm' if weights == 'timm' else short)
        found.append(Asked(names[place] if names else made, model, weights or None))
    legends = [each.legend for each in found]
    twice = [legend for legend in dict.fromkeys(legends) if legends.count(legend) > 1]
    if twice:
        raise ValueError(f'two networks would be called "{twice[0]}": give each a name of its own, with '
                         'commas between: --names=one,other')
    return found


def refuse_path(word, model, weights):
    """Raise a ValueError for a file without the name of its network, and for a folder, with the words that would work."""
    if not model or '=' not in word and Path(word).exists():
        path = Path(word.lstrip('='))
        guessed = guess_model(unwrap(read_plain(path), path)) if path.is_file() else None
        raise ValueError(f'{path} does not say which network it is of: write {guessed or "MODEL"}={path}')
    if weights and Path(weights).is_dir():
        files = sorted(path for path in Path(weights).glob('*.pth') if '_1k' in path.name)
        raise ValueError(f'{weights} is a folder: name a file of weights in it'
                         + (f', such as {model}={files[0]}' if files else ''))


def open_network(one, settings):
    """Make the network that is asked for, with its weights, whatever its classifier. Returns Opened. Raises ValueError.

    settings: Settings (analysis/images.py).
    """
    cnn = create(one, settings)
    notes = ()
    if one.weights is not None:
        loaded = load_classifier(cnn, one.weights, one.model, settings.size, settings.in_chans)
        config = {} if one.weights == 'timm' else options_and_classes(read_weights(one.weights)[0])[0]
        notes = (f'{one.legend}: {loaded}', *differences(one, settings, config))
    return Opened(cnn.eval(), None, None, notes, digest_of(cnn))


def create(one, settings, num_classes=None):
    torch.manual_seed(seed_for('weights', settings.seed))
    cnn = create_cnn(one.model, settings.in_chans, num_classes=num_classes, input_size=settings.size)
    try_size(cnn, one.model, settings.size, settings.in_chans)
    return cnn


def open_classifier(one, settings):
    """Make the network that is asked for, with a trained classifier. Returns Opened. Raises ValueError if it has none."""
    if one.weights is None:
        raise ValueError(f'{one.model} without weights has no trained classifier: give {one.model}=timm for '
                         f'those of timm, or {one.model}=FILE')
    if one.weights == 'timm':
        cnn = create(one, settings)
        loaded = load_classifier(cnn, 'timm', one.model, settings.size, settings.in_chans)
        require_whole(one, loaded)
        number = settings.outputs_of(cnn)
        return Opened(cnn.eval(), None, number, (f'{one.legend}: {loaded}',), digest_of(cnn))
    content, path, which = read_weights(one.weights)
    config, classes = options_and_classes(content)
    is_run = config and isinstance(content.get('model'), dict)
    state = unwrap(content['model'] if is_run and which is None else content, path)
    refuse_pretrained(state, config, path)
    module, loaded = probe_of(one, settings, state, path) or classifier_of(one, settings, state, path, which)
    number = settings.outputs_of(module)
    if classes is not None and len(classes) != number:
        raise ValueError(f'{path} is damaged: it names {len(classes)} classes, its network tells {number} '
                         'apart')
    notes = (f'{one.legend}: {loaded}', *differences(one, settings, config))
    return Opened(module, classes, number, notes, digest_of(module))


def options_and_classes(content):
    """Return (options, names of the classes or None) that a file of ours tells; ({}, None) for weights alone."""
    if not isinstance(content, dict):
        return {}, None
    config, classes = content.get('config'), content.get('classes')
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return config if isinstance(config, dict) else {}, classes if named else None


def refuse_pretrained(state, config, path):
    """Raise a ValueError for what masked pretraining wrote: such a network may have a classifier, but an untrained one."""
    has_mask_token = any('mask_token' in key for key in state)
    if has_mask_token or 'mask_ratio' in config or '_1kpretrained' in Path(path).name:
        raise ValueError(f'{path} is a pretrained network, without a trained classifier, which this analysis '
                         f'needs: {REMEDY}')


def probe_of(one, settings, state, path):
    """Return (Probe, what was loaded) if a file holds one, else None."""
    if 'fc.weight' not in state or not any(key.startswith('cnn.') for key in state):
        return None
    num_classes, channels = state['fc.weight'].shape
    # The network's own classifier is as it was when the probe was trained: for as many classes.
    module = Probe(create(one, settings, num_classes), channels, num_classes, 'norm.running_mean' in state)
    load_whole(module, state, path)
    return module.eval(), f'a linear classifier on frozen features, for {num_classes} classes'


def classifier_of(one, settings, state, path, which):
    """Return (network, what was loaded) of a file with a trained classifier. Raises ValueError if it has none."""
    entries = classifier_entries(one.model, settings.in_chans)
    num_classes = num_classes_in(state, create_cnn(one.model, settings.in_chans), entries, which)
    if num_classes is None:
        raise ValueError(f'{path} has no classifier for {one.model}, which this analysis needs: {REMEDY}')
    cnn = create(one, settings, num_classes)
    source = one.weights if which is not None else state
    loaded = load_classifier(cnn, source, one.model, settings.size, settings.in_chans)
    require_whole(one, loaded)
    return cnn.eval(), loaded


def require_whole(one, loaded):
    if loaded.missing or loaded.left_out:
        raise ValueError(f'{one.weights} has no classifier for {one.model} ({loaded}), which this analysis '
                         f'needs: {REMEDY}')


def differences(one, settings, config):
    """Return sentences on how the images differ from those that a file's network was trained on."""
    then = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    now = {'input_size': settings.size, 'mean': settings.normalisation[0], 'std': settings.normalisation[1],
           'pixel_range': settings.pixel_range}
    sides = then.get('input_size')
    then['input_size'] = (sides, sides) if isinstance(sides, int) else sides
    return tuple(f'note: {name} of {one.legend} was {then[name]} in training, and is {value} here'
                 for name, value in now.items() if then.get(name) is not None and then[name] != value)


def class_numbers(opened, one, folders):
    """Return {name of a folder: number of the class in a network's outputs}. Raises ValueError if that is not known.

    By name where the file names the classes, or where all folders are named as ImageNet's 1000 classes
    (n01440764); by their order where there are as many folders as classes.
    """
    names = opened.classes
    if names is None and len(folders) == opened.num_classes:
        names = sorted(folders)
    if names is None and opened.num_classes == 1000:
        names = ImageNetInfo().label_names()
    if names is None or not set(folders) <= set(names):
        unknown = sorted(set(folders) - set(names or ()))
        raise ValueError(f'{one.legend} tells {opened.num_classes} classes apart, and which of them the '
                         f'folders {first_of(unknown)} are is not known: give images of its own classes, one '
                         'folder for each')
    return {folder: names.index(folder) for folder in folders}


def digest_of(module):
    """A text that is the same for the same values under the same names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f'{name} {tuple(value.shape)} {value.dtype}'.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
