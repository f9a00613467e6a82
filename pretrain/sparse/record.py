"""A record of what a probe found, so that the same network need not be probed and proven again.

It is plain data, for a checkpoint that is read with `weights_only=True`. Whoever reads it trusts it only if
its digest is that of the network at hand: of the module tree, of the files in which its classes are written,
of what was asked of the probe, of what it found, and of the versions of torch, timm and the probe itself. A
record of another network, by other versions, or with a damaged value has another digest, and counts as none.
(A function that a forward calls from yet another file is not seen.)
"""
import hashlib
import inspect
import json
from dataclasses import fields
from pathlib import Path
from types import FunctionType

import timm
import torch
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from pretrain.sparse.probe import Found

VERSION = 5  # of the probe: raise it when what it refuses or finds changes
# These modules decide nothing: they drop values at random, or do nothing. With a rate of 0, timm has an
# Identity or None in place of a DropPath.
WITHOUT_EFFECT = (nn.Identity, nn.modules.dropout._DropoutNd, DropPath, StochasticDepth)
IN_VERSIONS = ('builtins', 'torch', 'timm')  # packages whose sources the versions stand for


class NoSource(Exception):
    """The network has code that lies in no file, such as a class of a notebook."""


def make_record(found, cnn, asked):
    """The record of what a probe found of a network, a dict of plain data.

    asked: the arguments of the probe, a dict. Returns None for a network whose code lies in no file, and
    where an argument is no plain data.
    """
    facts = found.as_plain()
    try:
        digest = digest_of(cnn, asked, facts)
    except (NoSource, TypeError):
        return None
    return {'torch': str(torch.__version__), 'timm': timm.__version__, 'facts': facts, 'digest': digest}


def read_record(record, cnn, asked):
    """What a record says was found of this network; None if it cannot be trusted, whatever it is."""
    if not isinstance(record, dict) or not {'facts', 'digest'} <= set(record):
        return None
    try:
        if record['digest'] != digest_of(cnn, asked, record['facts']):
            return None
    except (NoSource, TypeError, ValueError, RecursionError):  # the last three by json, for no plain data
        return None
    return Found.of_plain(record['facts'])


def digest_of(cnn, asked, facts):
    """A hash of all that decides what the probe finds, and of what it found. Raises NoSource."""
    probe = [VERSION, [field.name for field in fields(Found)]]
    content = [probe, str(torch.__version__), timm.__version__, describe(cnn), asked, facts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe(cnn):
    """The module tree as plain data: names, classes, parameters, attributes, and hashes of the sources.

    Raises NoSource.
    """
    modules, sources = [], {}
    for name, module in cnn.named_modules(remove_duplicate=False):
        if isinstance(module, WITHOUT_EFFECT):
            continue
        for cls in type(module).__mro__:
            add_source(cls, sources)
        code = module.code if isinstance(module, torch.fx.GraphModule) else ''
        kind = name_of(type(module))
        modules.append([name, kind, tensors_of(module), attributes_of(module, sources), code])
    return [modules, sorted(sources.items())]


def tensors_of(module):
    """[name, shape, dtype, requires_grad, is_meta] of a module's own parameters and buffers."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [[name, list(one.shape), str(one.dtype), one.requires_grad, one.is_meta] for name, one in own]


def attributes_of(module, sources):
    """{name: value} of a module's own attributes, such as strides. Raises NoSource.

    Of what is no plain data, the kind counts. None counts as no attribute.
    """
    found = {}
    for name, value in vars(module).items():
        if name.startswith('_') or name == 'training' or value is None:
            continue
        if is_plain(value):
            found[name] = value
        elif isinstance(value, FunctionType):
            add_source(value, sources)
            found[name] = name_of(value)
        else:
            found[name] = name_of(type(value))
    return found


def is_plain(value):
    """Whether a value is plain data that json writes faithfully. Tuples become lists."""
    if isinstance(value, (tuple, list)):
        return all(is_plain(one) for one in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(one) for key, one in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def name_of(one):
    """The full name of a class or a function."""
    return f'{one.__module__}.{one.__qualname__}'


def add_source(one, sources):
    """Add a hash of the file in which a class or a function is written, unless a version stands for it."""
    module = one.__module__
    if module.partition('.')[0] in IN_VERSIONS or module in sources:
        return
    try:
        content = Path(inspect.getsourcefile(one)).read_bytes()
    except (TypeError, OSError) as error:
        raise NoSource from error
    sources[module] = hashlib.sha256(content).hexdigest()
