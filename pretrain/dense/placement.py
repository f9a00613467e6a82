"""Where the mask token of A2MIM comes in: the submodule whose output gets it.

For ResNets the paper puts it after the third of four stages. The rule here finds that place in any network, and proves it.
For ConvNeXts and ViTs it is where the authors put it (`authors_choice`).
"""
import difflib

from timm.models.convnext import ConvNeXt
from timm.models.hrnet import HighResolutionNet

from pretrain.dense.mask_token import Axes, find_layout
from pretrain.dense.proof import watched

# The embedding of patches in ViTs, in XCiT (whose patch_embed gives a tuple), and in mixers.
SINGLE_STRIDE = ('patch_embed', 'patch_embed.proj', 'stem')
REMEDY = 'name a submodule that all of the network goes through, --token_at=NAME'


def find_place(cnn, seen, proof, token_at=None):
    """The submodule that the token comes in at, and the Layout of its output.

    Args:
        cnn: the network.
        seen: Seen, what `look` found.
        proof: the Proof of a copy of it.
        token_at: the name of a submodule, if somebody gives one.

    Without a name, the first of these that is proven: what the authors chose for a family (`authors_choice`);
    the outermost submodule whose output is the pyramid's map of half the total stride; the last submodule, in
    the order of a forward, whose output has half the total stride.

    Raises ValueError for a name that is given and does not fit, and for a network without a place.
    """
    if token_at is not None:
        return given_place(cnn, proof, token_at)
    name = type(cnn).__name__
    if isinstance(cnn, HighResolutionNet):
        raise ValueError(f'{name} computes branches of several strides side by side, so that something leads '
                         'around every map of half its total stride: name a submodule in front of the '
                         'branches, --token_at=layer1, or use a network without them')
    found = authors_choice(cnn, seen, proof)
    if found is None and seen.place is not None:
        found = proof.first_proven([seen.place])
    if found is None:
        found = proof.first_proven(passages(proof, lambda stride: 2 * stride == seen.stride))
    if found is None:
        other = proof.first_proven(passages(proof, lambda stride: stride < seen.stride))
        such_as = f', such as --token_at={other[0]}' if other else f': {REMEDY}'
        raise ValueError(f'{name} has no submodule with an output of stride {seen.stride / 2:g} that nothing '
                         'leads around, for the mask token to come in at: use another network, or another '
                         f'place{such_as}')
    return found


def authors_choice(cnn, seen, proof):
    """What the authors chose for ConvNeXts and ViTs, if it is proven: (name, Layout) or None.

    In both the output has the total stride: that of the last downsampling, or of the embedding of patches.
    """
    names = SINGLE_STRIDE if seen.is_single_stride else ()
    if isinstance(cnn, ConvNeXt):
        names = (f'stages.{len(cnn.stages) - 1}.downsample',)
    known = {name for name, _ in cnn.named_modules()}
    for name in names:
        fault, layout = proof.tried(name) if name in known else ('is not there', None)
        if fault is None and layout.repeats * seen.stride == proof.cell_size:
            return name, layout
    return None


def passages(proof, is_wanted):
    """Names of the submodules whose output lies on every path from the images to the last map, last to first in the
    forward. The paths are those of the autograd graph.

    Only these need to be tried by the proof. is_wanted(stride): whether maps (B, C, h, w) or (B, h, w, C) of this stride
    are looked at.
    """
    leaf = proof.images[:1].clone().requires_grad_()
    nodes = {}

    def note(name, output):
        nodes.pop(name, None)
        layout = find_layout(output, proof.grid, 1)
        if layout is not None and layout.axes is not Axes.TOKENS and is_wanted(proof.cell_size / layout.repeats):
            nodes[name] = output.grad_fn

    with watched(proof.twin, [name for name, _ in proof.twin.named_modules() if name], note):
        last = proof.last_map(proof.twin, leaf * 1)
    return [name for name, node in reversed(nodes.items()) if not leads_to(last.grad_fn, leaf, node)]


def leads_to(start, leaf, closed):
    """Whether a leaf can be reached in the graph of a forward, without passing through a node."""
    todo, seen = [start], {None, closed}
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if getattr(node, 'variable', None) is leaf:
            return True
        todo += [parent for parent, _ in node.next_functions]
    return False


def given_place(cnn, proof, token_at):
    """`find_place` for a name that somebody gives. Raises ValueError if it does not fit."""
    name = type(cnn).__name__
    known = [one for one, _ in cnn.named_modules() if one]
    if token_at not in known:
        near = difflib.get_close_matches(token_at, known, n=5, cutoff=0.4)
        near = near or [one for one in known if '.' not in one]
        raise ValueError(f'token_at: {name} has no submodule "{token_at}"; near are {", ".join(near)}')
    fault, layout = proof.tried(token_at)
    if fault is not None:
        raise ValueError(f'token_at: "{token_at}" of {name} {fault}; {REMEDY}, or leave token_at out')
    return token_at, layout
