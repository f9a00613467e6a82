"""The mean residual of groups of images, for A2MIM's Fourier loss: the same on any number of ranks.

The batch of a step is cut into groups of neighbouring images, in the order that `Steps` gives it. A rank has
several whole groups, or several neighbouring ranks share one. So the groups, and the loss, do not depend on how
a batch is divided among ranks and parts. Which groups fit is in pretrain/group_sizes.py.
"""
import torch.distributed as dist

from common.distributed import time_limit
from pretrain.group_sizes import reason_against


class GroupMeans:
    """Function of residuals (part, C, H, W) to the means of groups (groups, C, H, W); a rank's images at a time.

    group: images of a group. part: images that each rank takes at a time. Where a group is larger than a part, all
    ranks have to make this at the same moment, since torch then makes a process group of the ranks that share one.
    patience: minutes for which these wait for each other, see `time_limit`. Raises ValueError if the groups do not fit.
    """

    def __init__(self, group, part, ranks=1, patience=0):
        why_not = reason_against(group, part * ranks, ranks)
        if why_not:
            raise ValueError(why_not)
        self.here = min(group, part)
        self.sharing = group // self.here  # ranks that share a group
        self.process_group = None
        if self.sharing > 1:
            self.process_group, _ = dist.new_subgroups(self.sharing, timeout=time_limit(patience))

    def close(self):
        """End the process group of the ranks that share a group, if there is one."""
        if self.process_group is not None:
            dist.destroy_process_group(self.process_group)

    def __call__(self, values):
        means = values.unflatten(0, (-1, self.here)).mean(1)
        if self.process_group is None:
            return means
        # All ranks that share a group compute the same loss from the same mean, and DDP averages their gradients.
        # So each needs the gradient of its own images alone, and no gradient travels.
        shared = means.detach() / self.sharing
        dist.all_reduce(shared, group=self.process_group)
        return shared + (means - means.detach())
