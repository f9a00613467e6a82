"""The feature maps of a network, large to small, whatever way it has of giving them.

There are three ways, and the first that a network has is used: submodules that somebody names (`taps`),
timm's `forward_intermediates`, or a `forward` that returns the maps itself, as a list or a dict.
"""
from functools import partial

import torch


class FeatureMapsError(ValueError):
    """A network does not give the feature maps that it is asked for; the message names what would work."""


class _AllTapsRan(BaseException):  # no Exception, which the forward of a network may catch
    """Ends a forward after the last map that is wanted."""


def feature_maps(cnn, images, taps=None, stop=None):
    """The feature maps of one forward.

    Args:
        cnn: the network.
        images: (B, C, H, W).
        taps: names of submodules whose outputs are the maps. The forward ends after the last of them.
        stop: number of maps after which the forward ends, for networks with `forward_intermediates`; None runs them all.

    Returns:
        A list of tensors (B, C_i, H_i, W_i).

    Raises:
        FeatureMapsError: if the network gives no maps in any of these ways.
    """
    if taps is not None:
        return tapped_maps(cnn, images, taps)
    if hasattr(cnn, 'forward_intermediates'):
        only = {} if stop is None else {'indices': list(range(stop)), 'stop_early': True}
        return cnn.forward_intermediates(images, intermediates_only=True, **only)
    maps = cnn(images)
    if isinstance(maps, dict):
        maps = list(maps.values())
    if not isinstance(maps, (list, tuple)) or not all(is_feature_map(out) for out in maps):
        top = ', '.join(name for name, _ in cnn.named_children())
        raise FeatureMapsError(
            f'{type(cnn).__name__} gives no feature pyramid: name the submodules whose outputs are its '
            f"levels, large to small, with levels (at its top are {top}), or give it timm's "
            'forward_intermediates(x, intermediates_only=True), as in pretrain/models/custom.py (a newer '
            'timm may have it)')
    return list(maps)


def is_feature_map(output):
    return torch.is_tensor(output) and output.ndim == 4


def tapped_maps(cnn, images, taps):
    """The outputs of the submodules that `taps` names, in its order. Raises FeatureMapsError."""
    maps = {}

    def keep(name, module, inputs, output):
        if name in maps:
            raise FeatureMapsError(f'levels: {type(cnn).__name__} runs "{name}" more than once: name a '
                                   'submodule that it runs once')
        maps[name] = output
        if len(maps) == len(taps) and not torch.compiler.is_exporting():  # torch.export follows no exception
            raise _AllTapsRan

    handles = [cnn.get_submodule(name).register_forward_hook(partial(keep, name)) for name in taps]
    try:
        cnn(images)
    except _AllTapsRan:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if len(maps) < len(taps):
        not_run = sorted(set(taps) - set(maps))
        raise FeatureMapsError(f'levels: the forward of {type(cnn).__name__} does not run {not_run}')
    wrong = [name for name in taps if not is_feature_map(maps[name])]
    if wrong:
        raise FeatureMapsError(f'levels: {wrong[0]} of {type(cnn).__name__} gives no feature map (B, C, H, '
                               'W)')
    return [maps[name] for name in taps]


def find_taps(cnn, levels=None):
    """The `taps` by which a network gives its feature maps; None where it gives them by itself.

    levels: names of submodules that somebody asks for, or one name. Without them, a network that has no
    `forward_intermediates` is tapped where its `feature_info` (timm's) says, if it has the submodules named
    there. Raises FeatureMapsError for names that are none of its submodules, or name one twice.
    """
    names = [name for name, _ in cnn.named_modules(remove_duplicate=False) if name]
    levels = [levels] if isinstance(levels, str) else levels
    if levels is None and not hasattr(cnn, 'forward_intermediates') and hasattr(cnn, 'feature_info'):
        declared = [info['module'] for info in cnn.feature_info]  # a list, or timm's FeatureInfo
        levels = declared if set(declared) <= set(names) else None
    if levels is None:
        return None
    unknown = [name for name in levels if name not in names]
    if unknown or not levels:
        top = ', '.join(name for name in names if '.' not in name)
        raise FeatureMapsError(f'levels: {type(cnn).__name__} has no submodule '
                               f'"{unknown[0] if unknown else ""}"; at its top are {top}')
    if len({id(cnn.get_submodule(name)) for name in levels}) < len(levels):
        raise FeatureMapsError(f'levels: {", ".join(levels)} name a submodule twice')
    return tuple(levels)


def pooled_features(cnn, images):
    """(B, C): the mean over positions of the last feature map that pretraining trains, before any layers of the head.

    Of a network that ends in a transformer it is the mean of the patches, without the class token, after its last
    norm, which may stand before the mean or, as `fc_norm`, after it. Raises FeatureMapsError for a network without timm's
    methods.
    """
    if hasattr(cnn, 'num_prefix_tokens'):
        tokens = cnn.forward_features(images)
        if tokens.ndim == 3:
            mean = tokens[:, cnn.num_prefix_tokens:].mean(1)
            return cnn.fc_norm(mean) if hasattr(cnn, 'fc_norm') else mean
    if hasattr(cnn, 'forward_intermediates'):
        return feature_maps(cnn, images)[-1].mean((2, 3))
    if not hasattr(cnn, 'forward_features'):
        raise FeatureMapsError(f"{type(cnn).__name__} has neither timm's forward_intermediates nor its forward_features: give "
                               'it one of them, as in pretrain/models/custom.py. (levels are for pretraining alone)')
    return cnn.forward_features(images).mean((2, 3))
