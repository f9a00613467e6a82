"""The proof that a token at a submodule's output reaches all that the last map is made of."""
import torch

from pretrain.dense.mask_token import Axes, find_layout
from pretrain.sparse.probe import unused_parameters
from pretrain.sparse.proof import prepare

TOLERANCE = 1e-6  # of the difference between two images; what is computed twice from the same is the same


class Proof:
    """Tries submodules of a network, for one grid of cells.

    Two forwards are compared. In the second one the two images change places, and the submodule gives what it gave in
    the first. If the last map is the same, every path from the images to it goes through the submodule. If the last
    maps of the two images differ, they depend on it.

    Args:
        twin: a copy of the network, which is changed. It gets random scales, since branches that start at zero would
            hide what leads around; and its BatchNorms take the statistics of these images, since a deep network of
            random scales would explode without.
        last_map: last_map(cnn, images) runs it.
        images: two of them, (2, C, H, W).
        grid: (h, w) cells of an image.

    unused: names of the parameters that the last map does not depend on in training.
    """

    def __init__(self, twin, last_map, images, grid):
        self.twin = twin
        self.last_map = last_map
        self.images = images
        self.grid = grid
        prepare(twin)
        # In evaluation mode some networks keep tables of attention biases: nothing depends on the parameters then.
        self.unused = unused_parameters(twin, [last_map(twin.train(), images)])
        twin.eval()

    @property
    def cell_size(self):
        return self.images.shape[2] // self.grid[0]

    def first_proven(self, names):
        """The first of some submodules that a token can come in at: (name, its Layout), or None."""
        for name in names:
            fault, layout = self.tried(name)
            if fault is None:
                return name, layout
        return None

    @torch.no_grad()
    def tried(self, name):
        """Try a submodule: (fault, Layout). fault: the end of a sentence that begins with its name, None
        where a token can come in.
        """
        outputs = []
        with watched(self.twin, [name], lambda name, output: outputs.append(copy_of(output))):
            last = self.last_map(self.twin, self.images)
        if not last.isfinite().all():
            raise ValueError(f'{type(self.twin).__name__} gives values that are not finite on random images, so '
                             'that nothing can be proven: check its forward')
        if not outputs:
            return 'is not run on the way to the last map', None
        if len(outputs) > 1:
            return f'is run {len(outputs)} times in a forward, and must be run once', None
        layout = find_layout(outputs[0], self.grid, len(self.images))
        if layout is None:
            return self.no_map(outputs[0]), None
        if layout.axes is Axes.TOKENS and not self.in_rows(name, layout, outputs[0]):
            return 'gives tokens that are not in the order of the image, row by row', layout
        with replaced(self.twin, name, outputs[0]):
            other = self.last_map(self.twin, self.images.flip(0))
        difference = (last - last.flip(0)).abs().max()
        if not (other - last).abs().max() <= TOLERANCE * difference:
            return 'does not hold all that the last map is made of: something leads around it', layout
        if not difference > TOLERANCE * last.abs().max():
            return 'changes nothing in the last map', layout
        return None, layout

    def in_rows(self, name, layout, output):
        """Whether the tokens of an output (B, N, C) change most in the cell in which the image changes.

        Some networks sort them by windows. A map would show by its shape what a row of tokens does not.
        """
        h, w = self.grid
        changed = self.images.clone()
        height, width = (side // cells for side, cells in zip(self.images.shape[2:], self.grid))
        changed[..., :height, -width:] += 1  # the last cell of the first row, which others are not confused with
        outputs = []
        with watched(self.twin, [name], lambda name, output: outputs.append(copy_of(output))):
            self.last_map(self.twin, changed)
        by_token = (outputs[0] - output).abs().sum((0, 2))
        by_cell = by_token.view(h, layout.repeats, w, layout.repeats).sum((1, 3))
        return int(by_cell.argmax()) == w - 1

    def no_map(self, output):
        found = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
        return (f'gives no map of the {self.grid[0]} x {self.grid[1]} cells: its output is {found}, and should '
                f'be (B, C, h, w), (B, h, w, C) or (B, h*w, C), with h and w the same multiple of these')


class watched:
    """Context in which see(name, output) is called for each output of some submodules that a network has."""

    def __init__(self, cnn, names, see):
        self.modules = {name: cnn.get_submodule(name) for name in names}
        self.see = see

    def __enter__(self):
        self.handles = [module.register_forward_hook(lambda _, inputs, output, name=name: self.see(name, output))
                        for name, module in self.modules.items()]

    def __exit__(self, *failure):
        for handle in self.handles:
            handle.remove()


class replaced:
    """Context in which a submodule gives another output."""

    def __init__(self, cnn, name, output):
        self.module = cnn.get_submodule(name)
        self.output = output

    def __enter__(self):
        self.handle = self.module.register_forward_hook(lambda module, inputs, output: self.output)

    def __exit__(self, *failure):
        self.handle.remove()


def copy_of(output):
    """A copy of an output, which a later layer may overwrite."""
    return output.clone() if torch.is_tensor(output) else output
