"""One forward of a network, watched: every operator together with the module that called it."""
from contextlib import nullcontext
from functools import partial

import torch
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointError

from common.feature_maps import FeatureMapsError
from common.networks.convolutions import safe_convolutions
from common.networks.norms import NO_DEVIATION, values_of_channel
from pretrain.sparse.aligned import AlignedPadding
from pretrain.sparse.geometry import Geometry
from pretrain.sparse.notes import Note, NoteKind
from pretrain.sparse.operators import NORMS, SAFE, fault_on_strip, is_attention, is_pointwise, tensors_of
from pretrain.sparse.plane import CellTooSmall, Plane
from pretrain.sparse.refused import REMEDY, UNKNOWN, WITHOUT_ATTENTION, AttentionRefused, ForwardFailed, Refused
from pretrain.sparse.rules import is_of_torch, rule_of


class OperatorWatch(TorchDispatchMode):
    """Runs a network once, refuses operators that strips would get wrong, and keeps what is worth a note.

    cnn: the network. grid: (h, w) cells of an image; the network then runs on strips of some of them. Without
    a grid it runs on whole images, and no operator is refused. with_attention: whether the
    dense forward of this network ran attention; a refusal then names the remedy for attention.

    Attention is let pass: no operator tells whether it is over all positions. The proof does (attention.py).

    After `run`: `called` are the modules that ran, in their order; `operators` the operators, each with the
    name of the module that called it; `attention` which module is the first to run attention, None if there is
    none; `has_tokens` whether an operator that is not known to be safe took a tensor (B, k, 1), one number for each
    position: the weights of a mean over all positions, which is right on a strip, or over some of them, which is not;
    only the proof can tell; `needs_full_proof`; `notes` a set of Note; `breaks_compile` whether the network calls what
    torch.compile hides from a Plane: F.pad, or what has a rule of its own (`on_plane`).
    """

    def __init__(self, cnn, grid=None, with_attention=False):
        super().__init__()
        self.cnn = cnn
        self.grid = grid
        self.with_attention = with_attention
        self.attention = None
        self.has_tokens = False
        self.plane = None
        self.stack = [('', cnn)]  # (name, module) that are running, the innermost last
        self.called = []
        self.operators = []
        self.notes = set()

    def run(self, images, maps_of, aligned=False, training=False):
        """The feature maps of a forward, with its graph.

        images: (B, C, H, W). maps_of(cnn, x) gives the maps. aligned: whether windows without padding are
        padded, see AlignedPadding. training: in training mode, with a backward pass. The modes of the modules
        are put back.

        Raises Refused, CellTooSmall, and FeatureMapsError of `maps_of`.
        """
        modes = {module: module.training for module in self.cnn.modules()}
        handles = []
        for name, module in self.cnn.named_modules():
            handles.append(module.register_forward_pre_hook(partial(self.enter, name)))
            handles.append(module.register_forward_hook(self.leave))
        x = images if self.grid is None else self.to_strips(images)
        try:
            self.cnn.train(training)
            maps = self.forward(x, maps_of, aligned)
            if training:
                self.run_backward(maps)
            return maps
        except (Refused, FeatureMapsError):
            raise
        except Exception as error:  # whatever a network of the user's can raise
            raise self.explained(error, images.shape) from error
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes.items():
                module.training = mode

    def to_strips(self, images):
        geometry = Geometry(some_visible(len(images), self.grid).to(images.device), self.grid)
        self.plane = _WatchedPlane(geometry)
        return geometry.to_strip(images)

    def forward(self, x, maps_of, aligned):
        plane = self.plane or nullcontext()
        padding = AlignedPadding() if aligned else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]), self, \
                safe_convolutions(x.device), plane, padding:
            maps = maps_of(self.cnn, x)
        if self.plane is not None:
            self.notes |= self.plane.notes
        return maps

    def run_backward(self, maps):
        """Refuse a network that runs modules again in the backward pass.

        No plane is on there, so that its gradients would be wrong.
        """
        number_called = len(self.called)
        outputs = [out for out in maps if out.requires_grad]
        failure = None
        try:
            torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
        except RuntimeError as error:  # torch may find by itself that a second run differs from the first
            failure = error
        called_again = self.called[number_called:]
        names = [name for name, module in self.cnn.named_modules() if module in called_again]
        if names or isinstance(failure, CheckpointError):
            what = f'its module "{names[0]}"' if names else 'something'
            raise Refused(
                f'{type(self.cnn).__name__} runs {what} again in the backward pass (activation '
                'checkpointing), where there is no mask: switch that off for pretraining') from failure
        if failure:
            raise failure

    @property
    def needs_full_proof(self):
        """Whether what the network does with positions shows in no operator."""
        has_positions = self.plane is not None and self.plane.has_positions
        return has_positions or self.has_tokens or self.attention is not None

    @property
    def has_own_rule(self):
        """Whether a function of the network's own has a rule (`on_plane`)."""
        return self.plane is not None and self.plane.has_own_rule

    @property
    def breaks_compile(self):
        return self.has_own_rule or self.plane is not None and bool(self.plane.paddings)

    def explained(self, error, shape):
        """The exception to raise for one that a forward on images of this shape raised."""
        if isinstance(error, CellTooSmall):
            return CellTooSmall(f'{self.where()} {error}')
        if self.plane is None:
            return ForwardFailed(
                f'{type(self.cnn).__name__} cannot run on an image {tuple(shape)}: {type(error).__name__} '
                f'{error}. If it is too small, give a larger --input_size; '
                f'for another number of channels, in_chans')
        if type(error) is ValueError:  # of a rule of the plane, whose message ends the sentence
            return self.refused(str(error))
        kind = type(error).__name__
        return self.refused(f'cannot run on a strip of visible cells ({kind}: {error})')

    def enter(self, name, module, inputs):
        self.stack.append((name, module))
        if isinstance(module, _InstanceNorm) and inputs and values_of_channel(module, inputs[0]) == 1:
            raise Refused(f'{type(self.cnn).__name__} cannot be pretrained at this size: {self.where()} '
                          f'{NO_DEVIATION}')
        self.called.append(module)

    def leave(self, module, inputs, output):
        self.stack.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.operators.append((self.stack[-1][0], name))
        tensors = tensors_of(args)
        attends = is_attention(name, tensors)
        if attends and self.attention is None:
            self.attention = self.where()
        out = func(*args, **(kwargs or {}))
        if self.plane is not None and not attends:
            self.check_on_strip(func, name, args, tensors, out)
        if name == '_to_copy' and out.is_floating_point() and out.dtype.itemsize < tensors[0].dtype.itemsize:
            module, dtype = type(self.stack[-1][1]).__name__, str(out.dtype).removeprefix('torch.')
            self.notes.add(Note(NoteKind.PRECISION, f'{module} computes in {dtype}'))
        return out

    def check_on_strip(self, func, name, args, tensors, out):
        """Refuse an operator that mixes the positions of a strip in a way that no rule covers."""
        if self.plane.is_ruling:
            if name in NORMS:
                raise self.refused(f'calls {name} on the canvas, where hidden positions would enter its '
                                   'statistics')
            return
        if name in SAFE or is_pointwise(func, name):
            return
        strip_axes = [pair for tensor in tensors for pair in self.strip_axes(tensor)]
        fault = fault_on_strip(name, args, out, strip_axes) if strip_axes else None
        if fault is None:
            return
        if any(tensor.ndim == 3 and self.strip_axes(tensor) and tensor.shape[2] == 1 for tensor in tensors):
            self.has_tokens = True  # one number for each position
        else:
            raise self.refused(fault)

    def strip_axes(self, x):
        """The pairs of axes of x that may be the strip by their sizes: none, one, or more by coincidence."""
        return [(a, a + 1) for a in range(1, x.ndim - 1)
                if x.shape[a] == self.plane.visible * x.shape[a + 1] and x.shape[a] > 1]

    def where(self):
        """The module that is running, for messages."""
        name, module = self.stack[-1]
        return f'its module "{name or "(top)"}" ({type(module).__name__})'

    def refused(self, fault):
        """The exception for a fault of the module that is running, which is the end of a sentence."""
        has_attention = self.with_attention or self.attention
        kind, remedy = (AttentionRefused, WITHOUT_ATTENTION) if has_attention else (Refused, REMEDY)
        return kind(f'{type(self.cnn).__name__} cannot be pretrained sparsely as it is: {self.where()} {fault}'
                    f'{UNKNOWN} {remedy}')


class _WatchedPlane(Plane):
    """A plane that knows whether a rule is running, whether one was of the network's own, whether one gathered a
    table of positions, and which paddings it replaces.
    """

    def __init__(self, geometry):
        super().__init__(geometry)
        self.is_ruling = False
        self.has_own_rule = False
        self.has_positions = False
        self.notes = set()

    def gather(self, table):
        self.has_positions = True
        return super().gather(table)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.is_ruling = rule_of(function) is not None
        self.has_own_rule |= self.is_ruling and not is_of_torch(function)
        try:
            return super().__torch_function__(function, types, args, kwargs)
        finally:
            self.is_ruling = False
            for _, padding in self.paddings:
                if padding['mode'] != 'constant':
                    text = (f'pads by "{padding["mode"]}", which a hidden neighbour cannot imitate: zeros '
                            'are there')
                    self.notes.add(Note(NoteKind.PADDING_MODE, text))


def some_visible(images, grid):
    """The first k cells of each image, LongTensor (images, k), k the largest prime below their number (1 of 2 cells).

    With a prime, hardly any other axis of a tensor happens to be k times the next.
    """
    cells = grid[0] * grid[1]
    k = next(k for k in range(cells - 1, 0, -1) if all(k % d for d in range(2, k)))
    return torch.arange(k).expand(images, k)
