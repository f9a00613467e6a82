"""SparK's weight files: ours and those of the official release, whole or the encoder alone.

A whole file of ours (*_still_pretraining.pth) has the keys of SparK's state_dict: those of the CNN, timm's,
begin with 'encoder.cnn.'. In a whole official file (*_withdecoder_1kpretrained_spark_style.pth) they begin
with 'sparse_encoder.sp_cnn.', a ConvNeXt has the names that its authors gave it, and there are a few
constants besides. Files of the encoder alone (*_1kpretrained.pth; official *_1kpretrained_timm_style.pth and
*_official_style.pth) have the CNN's keys without any prefix.
"""
import torch

from common.networks.find import find_cnn, find_network
from common.networks.keys import is_within, unwrap
from common.networks.load import load_found, read_source
from common.networks.renaming import spellings, to_authors, to_timm
from common.reliability.checkpoint import plain_state
from pretrain.masked_network import ENCODER

OFFICIAL_ENCODER = 'sparse_encoder.sp_cnn.'  # what the CNN's keys begin with in a whole official SparK
OFFICIAL_UNUSED = frozenset({'imn_m', 'imn_s', 'norm_black'})  # constants in official files, not needed here
DECODER = 'dense_decoder'  # what the decoder is called in both


def load_init(spark, source, model=None, adapt=False):
    """Start a SparK from weights.

    A whole SparK, ours or official, fills encoder and decoder; any other file fills the encoder. So does a
    whole one for images of other channels where they are adapted, since its decoder has other outputs.

    Args:
        source: FILE, FILE:KEY, the content of a file, or 'timm' for timm's own pretrained weights of `model`.
        adapt: whether weights for images of other channels are adapted.

    Returns Loaded. Raises ValueError; then nothing has been changed.
    """
    state, path, which = read_source(source, model, spark.encoder.in_chans)
    return load_found(*find_init(spark, state, path, which, adapt))


def find_init(spark, state, path='the given object', which=None, adapt=False):
    """Find what `load_init` takes from a flat dictionary of tensors.

    Returns the arguments of `load_found`: (module, Network, names of the parameters that may be missing). The
    module is the SparK itself for a whole file, else its CNN. Raises ValueError.
    """
    encoder = spark.encoder
    network = find_cnn(encoder.cnn, state, encoder.unused, path=path, which=which, channels=encoder.in_chans,
                       adapt=adapt)
    if is_whole(state) and not network.adapted and not (which is not None and names_encoder(which)):
        return spark, find_whole(spark, state, path=path, which=which), whole_may_miss(spark)
    return encoder.cnn, network, encoder.unused


def names_encoder(which):
    """Whether the KEY of FILE:KEY means the CNN in a whole SparK of ours, as in encoder.cnn."""
    return is_within('cnn', which + '.')


def load_official(state, spark):
    """Load a whole official SparK into ours, strictly; see SparK.load_official.

    Returns Loaded. Raises ValueError; then nothing has been changed.
    """
    state = unwrap(state)
    if not any(OFFICIAL_ENCODER in key for key in state):
        raise ValueError(f'this is no whole official SparK: no key starts with {OFFICIAL_ENCODER}')
    return load_found(spark, find_whole(spark, state), whole_may_miss(spark))


def find_whole(spark, state, **given):
    """Find a whole SparK, ours or official, in a flat dictionary. given: arguments of `find_network`.

    Returns a Network. Raises ValueError.
    """
    cnn = spark.encoder.cnn
    others = [key for key in spark.state_dict() if not key.startswith(ENCODER)]
    encoder_names = {prefix + key for prefix in (ENCODER, OFFICIAL_ENCODER) for key in spellings(cnn)}
    names = {*others, *encoder_names}

    def convert(entries):
        official = {key.removeprefix(OFFICIAL_ENCODER): value for key, value in entries.items()
                    if key.startswith(OFFICIAL_ENCODER)}
        encoder = {ENCODER + key: value for key, value in to_timm(official, cnn).items()}
        rest = {key: value for key, value in entries.items()
                if not key.startswith(OFFICIAL_ENCODER) and key not in OFFICIAL_UNUSED}
        return {**encoder, **rest}

    return find_network(spark, state, whole_may_miss(spark), convert=convert, names=names, **given)


def whole_may_miss(spark):
    """Return the names of the parameters that a whole file may lack: the features do not depend on them."""
    return [ENCODER + name for name in spark.encoder.unused]


def is_whole(state):
    """Whether a flat dictionary has a SparK's decoder, and so holds all of it."""
    return any(f'{DECODER}.' in key for key in state)


def is_part_of_whole(network):
    """Whether a Network of a CNN was found inside of a whole SparK."""
    return any(network.is_beside(encoder, {DECODER}) for encoder in (ENCODER, OFFICIAL_ENCODER))


def decoder_width(state):
    """Return the width of the decoder in a flat dictionary, None if there is none."""
    for key, value in state.items():
        if key.endswith(f'{DECODER}.dec.0.up_sample.weight'):
            return value.shape[0]
    return None


def official_encoder(state):
    """Rename the entries of a CNN from timm's names to those of an official file, without the classifier."""
    return {key: value for key, value in to_authors(state).items() if not key.startswith(('fc.', 'head.'))}


def official_whole(spark, encoder, normalisation):
    """Return the content of an official file with decoder, {'module': state_dict}.

    encoder: the CNN's entries as `official_encoder` returns them. normalisation: (mean, std) of each channel,
    which the official program keeps in its files.
    """
    decoder = {key: value for key, value in plain_state(spark).items() if not key.startswith(ENCODER)}
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in normalisation)
    size = (1, spark.encoder.in_chans, *spark.encoder.input_size)
    unused = {'imn_m': mean, 'imn_s': std, 'norm_black': torch.zeros(size)}
    encoder = {OFFICIAL_ENCODER + key: value for key, value in encoder.items()}
    return {'module': {**unused, **encoder, **decoder}}
