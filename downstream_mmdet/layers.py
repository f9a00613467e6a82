"""Which layer of a ConvNeXt a parameter belongs to, and how it is trained there. Needs nothing of MMDetection."""


def layer_of(name, last):
    """The layer of a parameter of a detector on a ConvNeXt with timm's names: 0 the stem, `last` + 1 what is not the ConvNeXt.

    last: the number of the layer of stage 3, 12, or 6 for a ConvNeXt-T. Stages 0 and 1 are layers 1 and 2. Three blocks of
    stage 2 each are a layer, from 3 on; its downsampling is in layer 3 (ConvNeXt's layer-wise decay).
    """
    parts = name.split('.')
    if parts[:2] == ['backbone', 'stem']:
        return 0
    if parts[:2] != ['backbone', 'stages']:
        return last + 1
    stage, is_block = int(parts[2]), parts[3] == 'blocks'
    return (1, 2, 3 + int(parts[4]) // 3 if is_block else 3, last)[stage]


def parameter_groups(named, lr, weight_decay, decay_rate, last):
    """Groups for an optimiser, one for each layer with and without weight decay: lr * decay_rate ** (last + 1 - layer).

    named: (name, parameter) of a whole detector. One-dimensional parameters and biases get no weight decay. Raises
    ValueError if the ConvNeXt has more layers than `last` says.
    """
    named = list(named)
    deepest = max(layer_of(name, 0) for name, _ in named)  # a block of stage 2
    if deepest >= last:
        raise ValueError(f'paramwise_cfg.num_layers is {last}, and this ConvNeXt has {deepest + 1}: give '
                         f'optim_wrapper.paramwise_cfg.num_layers={deepest + 1}')
    groups = {}
    for name, parameter in named:
        if parameter.requires_grad:
            layer, decays = layer_of(name, last), parameter.ndim > 1 and not name.endswith('.bias')
            group = groups.setdefault((layer, decays), {
                'params': [], 'lr': lr * decay_rate ** (last + 1 - layer), 'weight_decay': weight_decay if decays else 0.0})
            group['params'].append(parameter)
    return [groups[key] for key in sorted(groups)]
