"""Which parameters of a network its feature maps depend on; the others are not pretrained."""


def used_parameters(outputs):
    """Ids of the parameters that the outputs depend on, from the graph of the forward; no backward is run."""
    todo = [out.grad_fn for out in outputs]
    seen, used = set(), set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        used.add(id(getattr(node, 'variable', None)))  # a leaf's node holds the leaf
        todo += [parent for parent, _ in node.next_functions]
    return used


def outermost_modules(cnn, keys):
    """{module: number of parameters} of the outermost modules that hold none but the parameters of these names."""
    others = [name for name, _ in cnn.named_parameters() if name not in set(keys)]
    sizes = {}
    for key in keys:
        module = next(prefix for prefix in prefixes(key)
                      if not any(is_within(name, prefix) for name in others))
        sizes[module] = sizes.get(module, 0) + cnn.get_parameter(key).numel()
    return sizes


def modules_run_for_nothing(cnn, unused, called):
    """Modules with convolutions or linear layers that are run, though no feature map depends on them.

    unused: names of the parameters that no feature map depends on. called: the modules that a forward ran.
    """
    run = {id(p) for module in called for p in module.parameters(recurse=False) if p.ndim > 1}
    idle = [key for key in unused if id(cnn.get_parameter(key)) in run]
    return [module for module in outermost_modules(cnn, unused)
            if any(is_within(key, module) for key in idle)]


def prefixes(name):
    """'a.b.c' -> 'a', 'a.b', 'a.b.c'."""
    parts = name.split('.')
    return ('.'.join(parts[:i]) for i in range(1, len(parts) + 1))


def is_within(name, module):
    """Whether a name is that of a module, or of something in it."""
    return name == module or name.startswith(f'{module}.')
