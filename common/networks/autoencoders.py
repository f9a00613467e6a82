"""Files of MAE (He et al., CVPR 2022) and of programs built on it, such as ConvMAE, for timm's ViTs and ConvViT.

These programs keep everything in one module, without prefixes. So a decoder may stand beside the layers of the
network, and the classifier of a linear probe is a BatchNorm and a linear layer, 'head.0.' and 'head.1.'. Detectors
and segmenters built on ConvMAE's network add tables of relative positions to its attention, and a segmenter also
layer scales and layers after the last stage.

Functions take the entries of a network in a file, {key: tensor}.
"""
import re

from timm.models.vision_transformer import VisionTransformer

from common.convvit import ConvViT
from common.networks.openmmlab import linear_classifier
from common.words import first_of

DECODER = re.compile(r'decoder_(?:pos_embed|(?:embed|blocks|norm|pred)\..+)|stage\d+_output_decode\..+')
MASK_TOKEN = 'mask_token'
RELATIVE_POSITIONS = re.compile(r'(?:^|[._])(?:rel_pos|relative_position)')
LAYER_SCALE = re.compile(r'(blocks3\.\d+)\.(?:gamma_|ls)([12])(?:\.gamma)?')
SCALED = {'1': 'attn.proj', '2': 'mlp.fc2'}  # the layer that a layer scale multiplies
PROBE_EPS = 1e-6  # of the BatchNorm of a probe


def is_autoencoders(cnn):
    """Whether files of MAE or ConvMAE may be for a network."""
    return isinstance(cnn, (ConvViT, VisionTransformer))


def sort_out(entries, cnn):
    """Separate the entries that a network has a place for from those that it does not need.

    Returns (entries, keys that are left out, sentences). Entries for other networks come back as they were.
    """
    if not is_autoencoders(cnn):
        return entries, (), ()
    entries, notes = with_linear_classifier(entries, cnn)
    if is_norm_over_mean(entries, cnn):
        entries = norm_over_mean(entries)
        notes += ('the norm in front of the classifier starts as the pretrained norm of the tokens',)
    of_pretraining = pretraining_keys(entries, cnn)
    if of_pretraining:
        notes += (f'{len(of_pretraining)} of those left out are for pretraining alone: {labels(of_pretraining)}',)
    entries = {key: value for key, value in entries.items() if key not in of_pretraining}
    if not isinstance(cnn, ConvViT) or not any(map(RELATIVE_POSITIONS.search, entries)):
        return entries, tuple(of_pretraining), notes
    entries, of_detector, more_notes = without_detector(entries, cnn)
    return entries, (*of_pretraining, *of_detector), (*notes, *more_notes)


def labels(keys):
    """Return the names of the modules and parameters that keys begin with, for a person."""
    return first_of(list(dict.fromkeys(key.split('.')[0] for key in keys)), 9)


def without_detector(entries, cnn):
    """Leave out what a detector or segmenter adds to a ConvViT; its layer scales are multiplied into the layers before.

    Returns as `sort_out`. Parameters outside of modules, such as a class token, stay, so that they are refused.
    """
    tables = [key for key in entries if RELATIVE_POSITIONS.search(key)]
    notes = [f'{len(tables)} of those left out are relative positions, which the attention of a detector or segmenter '
             'has and this network has not: its features are not those that were trained there']
    own = {name for name, _ in cnn.named_children()}
    layers = [key for key in entries if '.' in key and key.split('.')[0] not in own and key not in tables]
    if layers:
        notes.append(f'{len(layers)} of those left out are other layers of it: {labels(layers)}')
    left_out = (*tables, *layers)
    kept = {key: value for key, value in entries.items() if key not in left_out}
    for key, scale in entries.items():
        block = LAYER_SCALE.fullmatch(key)
        scaled = f'{block[1]}.{SCALED[block[2]]}' if block else None
        if block and f'{scaled}.weight' in kept and f'{scaled}.bias' in kept:
            del kept[key]
            kept[f'{scaled}.weight'] = kept[f'{scaled}.weight'] * scale[:, None]
            kept[f'{scaled}.bias'] = kept[f'{scaled}.bias'] * scale
    if len(kept) + len(left_out) < len(entries):
        notes.append('its layer scales are multiplied into the layers before them')
    return kept, left_out, tuple(notes)


def is_norm_over_mean(entries, cnn):
    """Whether a file has the last norm of a ViT on its tokens, and the network has it after their mean.

    ConvMAE's norm is none of the network: it stands in front of the decoder, after a sum over all stages.
    """
    own = cnn.state_dict()
    return isinstance(cnn, VisionTransformer) and 'fc_norm.weight' in own and 'norm.weight' not in own \
        and 'norm.weight' in entries and 'fc_norm.weight' not in entries


def norm_over_mean(entries):
    """Rename the norm of a ViT's tokens to the one over their mean."""
    return {re.sub(r'^norm\.', 'fc_norm.', key): value for key, value in entries.items()}


def pretraining_keys(entries, cnn):
    """Return the keys of the decoder and of what leads to it, as far as the network lacks them.

    A mask token without a decoder is another method's. The norm in front of ConvMAE's decoder is left out where the
    file has no norm for the classifier: that one starts anew, as in the authors' program.
    """
    own = cnn.state_dict()
    found = [key for key in entries if DECODER.fullmatch(key) and key not in own]
    if found and MASK_TOKEN in entries and MASK_TOKEN not in own:
        found.append(MASK_TOKEN)
    if isinstance(cnn, ConvViT) and 'fc_norm.weight' not in entries:
        found += [key for key in ('norm.weight', 'norm.bias') if key in entries]
    return found


def with_linear_classifier(entries, cnn):
    """Make one linear layer of a probe's classifier, a BatchNorm without scale and shift and a linear layer.

    W (x - mean) / sqrt(variance + eps) + b is a linear function of x. Returns (entries, sentences).
    """
    if not is_autoencoders(cnn):
        return entries, ()
    name, inputs = linear_classifier(cnn)
    mean, variance, weight, bias = names = [f'{name}.{part}' for part in (
        '0.running_mean', '0.running_var', '1.weight', '1.bias')]
    if not set(names) <= entries.keys() or f'{name}.0.weight' in entries:
        return entries, ()
    if entries[weight].ndim != 2 or any(entries[key].shape != (inputs,) for key in (mean, variance)):
        return entries, ()
    scaled = entries[weight].double() / (entries[variance].double() + PROBE_EPS).sqrt()
    linear = {f'{name}.weight': scaled, f'{name}.bias': entries[bias].double() - scaled @ entries[mean].double()}
    rest = {key: value for key, value in entries.items() if key not in (*names, f'{name}.0.num_batches_tracked')}
    dtype = entries[weight].dtype
    note = f"the BatchNorm in front of the classifier, '{name}.0.', is multiplied into it"
    return {**rest, **{key: value.to(dtype) for key, value in linear.items()}}, (note,)


def remark(cnn, unexpected):
    """Return a sentence on entries that do not fit, '' if there is nothing to say. unexpected: their keys."""
    if isinstance(cnn, ConvViT) and 'cls_token' in unexpected:
        return ('A ConvViT has no class token: the file is of another network, a vision transformer or the second version '
                "of ConvMAE (MR-MCMAE), whose code was not published. Give a file of ConvMAE's or FastConvMAE's network")
    if isinstance(cnn, VisionTransformer) and 'fc_norm.weight' in unexpected:
        return ('The network of the file classifies by the mean of its patches, and this one by its class token: register '
                "one that is made with global_pool='avg' (pretrain/models/custom.py), and give its name")
    return ''
