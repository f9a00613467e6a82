"""A mode that says where code waits for the device, on any machine."""
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten

# Operations whose result, or whose shape, the host learns from the device.
READS = {ATEN._local_scalar_dense, ATEN.nonzero, ATEN.nonzero_numpy, ATEN.masked_select, ATEN.equal, ATEN.is_nonzero,
         ATEN.allclose, ATEN._unique, ATEN._unique2, ATEN.unique_dim, ATEN.unique_consecutive,
         ATEN.unique_dim_consecutive, ATEN.bincount}
INDEXED = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
COPIES = {ATEN.copy_, ATEN._to_copy, ATEN._copy_from, ATEN._copy_from_and_resize}
METHODS = {torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__}


class NoHostReads(TorchDispatchMode):
    """Context in which everything that makes the host wait for the device raises AssertionError with its name.

    These are `item`, a tensor as a condition or a number, `tolist`, `cpu`, `numpy`, `equal`, `allclose`, and operations whose
    shape depends on values: `nonzero`, `unique`, `bincount`, `masked_select`, an index of booleans, and `repeat_interleave` by
    counts without `output_size`. A copy from another device to the CPU raises too; `x.to('cpu')` is therefore found on a GPU
    alone, where x is elsewhere. Backward passes inside the context are watched as well.

        with NoHostReads():
            loss = model(images)
            loss.backward()
    """

    def __enter__(self):
        self.methods = _NoReadingMethods()
        self.methods.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.methods.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = function.overloadpacket
        assert packet not in READS, f'{function} reads from the device'
        assert packet not in INDEXED or not has_booleans(args[1]), f'{function} with booleans reads from the device'
        counts = packet is ATEN.repeat_interleave and kwargs.get('output_size') is None
        assert not counts, f'{function} without output_size reads from the device'
        out = function(*args, **kwargs)
        if packet in COPIES and isinstance(out, torch.Tensor) and out.device.type == 'cpu':
            sources = {value.device.type for value in args if isinstance(value, torch.Tensor)}
            assert sources == {'cpu'}, f'{function} copies from {sources - {"cpu"}} to the CPU'
        return out


class _NoReadingMethods(TorchFunctionMode):
    """The same for methods of a tensor that, on the CPU, dispatch no operation."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in METHODS, f'Tensor.{function.__name__} reads from the device'
        return function(*args, **(kwargs or {}))


def has_booleans(indices):
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
