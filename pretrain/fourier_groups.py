"""The mean residual of groups of images, for A2MIM's Fourier loss: the same on any number of ranks.

The batch of a step is cut into groups of neighbouring images, in the order that `Steps` gives it. A rank has several whole
groups, or several neighbouring ranks share one. So the groups, and the loss, do not depend on how a batch is
divided among ranks and parts.
"""
import torch.distributed as dist


class GroupMeans:
    """Function of residuals (part, C, H, W), a rank's images at a time, to the means of its groups (groups, C, H, W).

    group: images of a group. part: images that each rank takes at a time. Every rank has to make it at the same moment, where
    a group is larger than a part: torch then makes a process group of the ranks that share one. Raises ValueError if
    the groups do not fit.
    """

    def __init__(self, group, part, ranks=1):
        check_groups(group, part, ranks)
        self.here = min(group, part)
        self.sharing = group // self.here  # ranks that share a group
        self.process_group = None
        if self.sharing > 1:
            self.process_group, _ = dist.new_subgroups(self.sharing)

    def __call__(self, values):
        means = values.unflatten(0, (-1, self.here)).mean(1)
        if self.process_group is None:
            return means
        # All ranks that share a group compute the same loss from the same mean, and DDP averages their gradients. So each
        # needs the gradient of its own images alone, and no gradient travels.
        shared = means.detach() / self.sharing
        dist.all_reduce(shared, group=self.process_group)
        return shared + (means - means.detach())


def check_groups(group, part, ranks=1):
    """Raise ValueError unless ranks that take `part` images at a time each can form whole groups."""
    fits = part % group == 0 or group % part == 0 and ranks % (group // part) == 0
    if not fits:
        together = part * ranks
        good = [size for size in range(1, together + 1)
                if part % size == 0 or size % part == 0 and ranks % (size // part) == 0]
        below, above = [size for size in good if size < group][-1:], [size for size in good if size > group][:1]
        what = f'{together} images at a time' if ranks == 1 else f'{part} images at a time on each of {ranks} ranks'
        raise ValueError(f'--fourier_group={group} does not divide {what}: give '
                         f'{" or ".join(f"--fourier_group={size}" for size in (*below, *above))}, or another --bs or --accum')
