"""--to=official: files as the official release has them.

Of SparK, there is one of the encoder, and one of the whole network where the decoder is one that the official code has.
Those of ConvMAE and MAE are in pretrain/formats/to_official_mae.py.
"""
import torch

from common.networks.guess import guess_model
from common.networks.load import load_strictly
from common.networks.renaming import to_timm
from common.reliability.checkpoint import read_plain, save
from pretrain.formats import contents, to_official_mae, verify
from pretrain.saved import untrained
from pretrain.spark_options import SPARK
from pretrain.spark_weights import load_official, official_encoder, official_whole

READER = 'our reader of official files'


@torch.no_grad()
def write(saved, stem, suffix, licence):
    """Write files in the style of the published ones, always .pth. See WRITERS in pretrain/export.py."""
    if saved.method.name in to_official_mae.METHODS:
        return to_official_mae.write(saved, stem)
    if saved.method.name != SPARK:
        raise ValueError(f'--to=official is for the official code of SparK, ConvMAE and MAE, and this network was pretrained '
                         f'with {saved.method.title}: give --to=timm, or another format')
    state = contents.entries_of(saved, classifier=False)
    if guess_model(state) != contents.name_of(saved):
        raise ValueError(f'the official code knows plain ResNets and ConvNeXts, not {saved.model}')
    entries = official_encoder(state)
    name = stem.name.removesuffix('_official')
    style = 'official' if any(key.startswith('stages.') for key in state) else 'timm'
    path = stem.with_name(f'{name}_1kpretrained_{style}_style.pth')
    sentences = [write_encoder(saved, path, state, entries)]
    if saved.has_decoder and saved.options.decoder != 'unet':
        sentences.append('no file with the decoder: the official code has no light one')
    elif saved.has_decoder and saved.options.target != 'normalised':
        sentences.append('no file with the decoder: this one predicts pixels, and the official code would '
                         'take them for normalised cells')
    elif saved.has_decoder:
        path = stem.with_name(f'{name}_withdecoder_1kpretrained_spark_style.pth')
        sentences.append(write_whole(saved, path, entries))
    return [*sentences, 'Names and shapes are the official ones; the official program itself was not run']


def write_encoder(saved, path, state, entries):
    """Write a file of the encoder alone.

    state: its entries under timm's names. entries: the same under the official names. Returns a sentence.
    """
    save(path, entries)
    encoder = saved.network.encoder
    theirs = contents.create(saved)
    read = to_timm(read_plain(path), theirs)
    load_strictly(theirs, read, may_miss=encoder.unused)
    # A norm in front of the classifier has no place in an official file.
    head = {key: value for key, value in state.items() if key.startswith('head.')}
    verify.require_given(saved, {**read, **head}, READER, classifier=False)
    images = verify.sample_images(saved)
    verify.require_same(encoder(images), encoder.pyramid(images, cnn=theirs.eval()), READER)
    return f'{path}: the encoder; read by {READER}: the same features'


def write_whole(saved, path, entries):
    """Write a file of encoder and decoder.

    entries: of the encoder, under the official names. Returns a sentence.
    """
    save(path, official_whole(saved.network, entries, saved.options.normalisation))
    theirs = untrained(saved.method, saved.options).eval()
    load_official(read_plain(path), theirs)
    images = verify.sample_images(saved)
    visible = saved.network.draw_visible(len(images), torch.Generator().manual_seed(0))
    verify.require_same([saved.network.predict(images, visible)], [theirs.predict(images, visible)], READER)
    return f'{path}: encoder and decoder; read by {READER}: the same reconstruction'
