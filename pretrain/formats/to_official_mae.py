"""--to=official for ConvMAE and MAE: files as the authors' programs have them, {'model': state_dict}.

There is one of the network alone, for fine-tuning, and one of the whole, to reconstruct and to go on with.
"""
import re

import torch

from common.convvit import ConvViT
from common.networks.create import create_cnn
from common.networks.load import load_classifier
from common.reliability.checkpoint import plain_state, read_plain, save
from pretrain.convmae_options import NAME as CONVMAE
from pretrain.formats import contents, verify
from pretrain.mae_options import NAME as MAE
from pretrain.masked_network import ENCODER
from pretrain.saved import untrained

METHODS = (CONVMAE, MAE)
READER = 'our reader of official files'
BLOCK = r'(?:norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.(?:weight|bias)'
VIT = re.compile(rf'cls_token|pos_embed|(?:patch_embed\.proj|norm)\.(?:weight|bias)|blocks\.\d+\.{BLOCK}')  # of MAE's ViTs


def write(saved, stem):
    """Write the files of a ConvMAE or MAE. Returns sentences. Raises ValueError for what their code cannot be."""
    cnn = saved.network.encoder.cnn
    entries = {key: value for key, value in contents.entries_of(saved, classifier=False).items()
               if key not in saved.network.encoder.unused}
    check_size(saved)
    if saved.method.name == CONVMAE and not isinstance(cnn, ConvViT):
        raise ValueError(f'the official code of ConvMAE knows ConvViT alone, not {saved.model}: give --to=timm')
    if saved.method.name == MAE and not ('cls_token' in entries and all(map(VIT.fullmatch, entries))):
        raise ValueError(f'the official code of MAE knows plain ViTs with a class token and a norm of their tokens, not '
                         f'{saved.model}: give --to=timm')
    name = stem.name.removesuffix('_official')
    path = stem.with_name(f'{name}_1kpretrained_official_style.pth')
    sentences = [write_encoder(saved, path, entries)]
    if saved.has_decoder and has_official_decoder(saved):
        path = stem.with_name(f'{name}_withdecoder_1kpretrained_official_style.pth')
        sentences.append(write_whole(saved, path))
    elif saved.has_decoder:
        sentences.append("no file with the decoder: the official code's decoder has the MLP ratio of the first stage, which "
                         'is another one here')
    return [*sentences, 'Names and shapes are the official ones; the official program itself was not run']


def check_size(saved):
    """Raise a ValueError for images that the official code cannot take: numbers of channels and patches are fixed there."""
    height, width = saved.network.encoder.input_size
    fits = height == width and (saved.method.name == MAE or height == 224)
    if not fits or saved.options.in_chans != 3:
        which = '224x224 pixels' if saved.method.name == CONVMAE else 'squares'
        raise ValueError(f'the official code of {saved.method.title} takes images of {which} and 3 channels alone, and this '
                         f'network is for {height}x{width} and {saved.options.in_chans}: give --to=timm')


def has_official_decoder(saved):
    """Whether the official code can make the decoder: that of ConvMAE has the MLP ratio of the first stage."""
    network = saved.network
    if saved.method.name == MAE:
        return True
    first, decoder = (mlp.fc1.weight for mlp in (network.encoder.cnn.blocks1[0].mlp, network.decoder_blocks[0].mlp))
    return first.shape[0] * decoder.shape[1] == decoder.shape[0] * first.shape[1]


def write_encoder(saved, path, entries):
    """Write a file of the network alone, read it back, and compare its feature maps. Returns a sentence."""
    save(path, {'model': entries})
    encoder = saved.network.encoder
    theirs = create_cnn(saved.model, saved.options.in_chans, input_size=encoder.input_size)
    content = read_plain(path)
    load_classifier(theirs, content, saved.model, encoder.input_size)
    unused = {key: value for key, value in contents.entries_of(saved, classifier=False).items() if key not in entries}
    verify.require_given(saved, {**content['model'], **unused}, READER, classifier=False)
    images = verify.sample_images(saved)
    verify.require_same(encoder.pyramid(images), encoder.pyramid(images, cnn=theirs.eval()), READER)
    return f'{path}: the encoder; read by {READER}: the same features'


def write_whole(saved, path):
    """Write a file of the whole network, read it back, and compare a reconstruction. Returns a sentence."""
    network = saved.network
    state = {key.removeprefix(ENCODER): value for key, value in plain_state(network).items()
             if key.removeprefix(ENCODER) not in network.encoder.unused}
    save(path, {'model': state})
    theirs = untrained(saved.method, saved.options).eval()
    theirs.load_official(read_plain(path))
    images = verify.sample_images(saved)
    visible = network.draw_visible(len(images), torch.Generator().manual_seed(0))
    verify.require_same([network.predict(images, visible)], [theirs.predict(images, visible)], READER)
    heads = saved.options.decoder_heads
    return (f'{path}: encoder and decoder; read by {READER}: the same reconstruction. The file does not tell the heads of the '
            f'decoder: whoever reads it has to give --decoder_heads={heads}')
