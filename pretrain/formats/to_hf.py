"""--to=hf: a folder for timm's 'local-dir:', which a model hub takes too, with a model card."""
import timm
from timm.models import save_for_hf

from common.networks.load import load_strictly
from common.reliability.checkpoint import read_plain
from common.words import number_and_first_of
from pretrain.formats import contents, verify
from pretrain.results.card import write_card

READER = 'timm (local-dir:)'


def write(saved, stem, suffix, licence):
    """Write a folder of config.json, model.safetensors and the card. See WRITERS in pretrain/export.py."""
    folder = stem
    cnn, drawn = write_network(saved, folder, licence)
    written = read_plain(folder / 'model.safetensors')
    entries = {key: value for key, value in written.items() if value.numel() and key not in drawn}
    verify.require_given(saved, entries, 'timm')
    remarks = write_card(saved, folder, licence)
    theirs = timm.create_model(f'local-dir:{folder}', pretrained=True)
    images = verify.sample_images(saved)
    verify.require_same([cnn.eval()(images)], [theirs.eval()(images)], READER)
    verify.require_same_network(saved, theirs, READER)
    sentences = [f'{folder}: read by timm.create_model("local-dir:{folder}", pretrained=True); '
                 f'{verify.what_is_same(saved)}. A hub takes the folder as it is; look at its README.md, the '
                 'model card, first', *remarks]
    if drawn:
        sentences.append(f'{number_and_first_of(drawn)}, which the given file lacks, are as timm initialises '
                         'them: norms that do nothing')
    return sentences


def write_network(saved, folder, licence):
    """Write what timm reads of the folder.

    Returns (the network, names of its entries that the given file lacks). Raises ValueError if timm cannot write it.
    """
    channels = saved.options.in_chans
    try:
        state = contents.entries_of(saved)
        cnn = made_by_timm(saved, state, pretrained_cfg(saved, licence))
        missing = contents.missing_in(state, cnn)
        drawn = [key for key in missing if cnn.state_dict()[key].numel()]
        if any(cnn.state_dict()[key].unique().numel() > 1 for key in drawn):
            raise ValueError(f'{saved.path} lacks {number_and_first_of(drawn)}, which a folder for timm has: '
                             'they would be random. Export it with --to=timm')
        load_strictly(cnn, state, may_miss=missing)
        save_for_hf(cnn, folder, model_config=label_names(saved), safe_serialization=True,
                    model_args={} if channels == 3 else {'in_chans': channels})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'{saved.model} is not built as timm builds its networks (build_model_with_cfg, '
                         'pretrained_cfg), so timm cannot load it from a folder: export it with --to=timm, '
                         'and give your code with it') from error
    except RuntimeError as error:
        raise ValueError(f'timm {timm.__version__} cannot write it with the huggingface_hub that is '
                         f'installed ({error}): install a later timm') from error
    return cnn, drawn


def made_by_timm(saved, state, config):
    """Return the network that timm makes with a config of pretrained weights.

    timm makes a ViT for the input_size of its config. One that takes images of any size may have been pretrained with
    the positions of its own size: the config then keeps that size.
    """
    cnn = contents.create(saved, num_classes=contents.num_classes(saved), pretrained_cfg_overlay=config)
    own = cnn.state_dict()
    if all(own[key].shape == value.shape for key, value in state.items() if key in own):
        return cnn
    config = {name: value for name, value in config.items() if name != 'input_size'}
    return contents.create(saved, num_classes=contents.num_classes(saved), pretrained_cfg_overlay=config)


def pretrained_cfg(saved, licence):
    """Return what timm's config of pretrained weights is to say, instead of what it says of timm's own."""
    mean, std = saved.options.normalisation
    of_timms_weights = ('origin_url', 'test_input_size', 'test_crop_pct', 'file', 'pool_size', 'hf_hub_id')
    return {**dict.fromkeys(of_timms_weights), 'url': '',
            'paper_name': saved.method.title, 'paper_ids': f'arXiv:{saved.method.paper.arxiv}',
            'mean': mean, 'std': std, 'input_size': (saved.options.in_chans, *saved.network.encoder.input_size),
            'crop_pct': 1.0, 'interpolation': saved.options.interpolation, 'num_classes': contents.num_classes(saved),
            'license': licence or 'other', 'tag': saved.method.name}


def label_names(saved):
    """Return the names of the classes as timm's config has them, if the given file has a name for each."""
    is_named = saved.has_classifier and saved.classes and len(saved.classes) == contents.num_classes(saved)
    return {'label_names': list(saved.classes)} if is_named else {}
