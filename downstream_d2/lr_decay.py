"""Layer-wise learning rates of a ResNet in Detectron2, and the parameter groups that go with them."""
import re

from torch import nn

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def last_layer(names):
    """The number of the layer res5 (5 for a ResNet-50, 11 for -101, 15 for -152), from the parameters' names.

    (The original has 11 for a ResNet-152 too, which gives its last blocks of res4 higher rates than the heads have.)
    """
    blocks = {int(match[1]) for name in names if (match := re.search(r'\bres4\.(\d+)\.', name))}
    if not blocks:
        raise ValueError('SOLVER.LR_DECAY is for ResNets: no parameter is in res4')
    return 3 + (len(blocks) + 2) // 3


def layer_of(name, last):
    """The layer of a parameter: stem 0, res2 1, res3 2, res4 3 + block // 3, res5 `last`, all else `last` + 1."""
    match = re.search(r'\b(?:(stem)|res(\d)\.(\d+))\.', name)
    if not match:
        return last + 1
    stem, stage, block = match.groups()
    return 0 if stem else {'2': 1, '3': 2, '4': 3 + int(block) // 3, '5': last}[stage]


def parameter_groups(model, lr, decay, weight_decay, norm_weight_decay=0.0):
    """Groups for an optimiser, one for each learning rate and weight decay: lr * decay ** (last + 1 - layer).

    norm_weight_decay: of the parameters of norms, SOLVER.WEIGHT_DECAY_NORM. Raises ValueError for other networks.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    # All names, so that frozen layers count; with a decay of 1 any network will do.
    last = 0 if decay == 1 else last_layer([name for name, _ in model.named_parameters()])
    of_norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)}
    groups = {}
    for name, parameter in named:
        rate = lr * decay ** (last + 1 - layer_of(name, last))
        weights = norm_weight_decay if id(parameter) in of_norms else weight_decay
        groups.setdefault((rate, weights), {'params': [], 'lr': rate, 'weight_decay': weights})['params'].append(parameter)
    return list(groups.values())
