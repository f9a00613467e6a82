"""Optimisers that read nothing on the host: parameter groups, LAMB, AdamW, SGD, and the guard.

A CUDA graph replays a step with the same addresses in memory and the same Python numbers. So the learning
rate, the weight decay and the verdict on a step are tensors on the device here, and all state is updated in
place. torch's fused kernels take a tensor for the learning rate, and for the verdict (`found_inf`, a 0-dim
tensor: 1 calls the step off), but a Python number for the weight decay.
"""
import timm.optim
import torch
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

FOREVER = 1e30  # steps after which bias correction corrects nothing
# names of parameters without weight decay, whatever their shape: biases and layer scale
NO_DECAY = ('bias', 'gamma')


def is_exempt(name, parameter, no_decay=NO_DECAY):
    """Whether a parameter gets no weight decay: it is one-dimensional, or a part of its name is in `no_decay`."""
    return parameter.ndim <= 1 or any(part in no_decay for part in name.split('.'))


def parameter_groups(module, weight_decay, no_decay=NO_DECAY, lr_scales=None):
    """Groups of a module's trained parameters for an optimiser: those with weight decay, those without, and one for
    each parameter whose learning rate is another.

    no_decay: names of parameters that get no decay, see `is_exempt`. lr_scales: {part of a name: share of the
    learning rate}, for parameters whose share is not 1.
    """
    decay, free, scaled = [], [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = not is_exempt(name, parameter, no_decay)
        scale = next((share for part, share in (lr_scales or {}).items() if part in name.split('.')), 1.0)
        if scale != 1:
            scaled.append({'params': [parameter], 'weight_decay': weight_decay if decays else 0.0, 'decays': decays,
                           'lr_scale': scale})
        else:
            (decay if decays else free).append(parameter)
    return [{'params': decay, 'weight_decay': weight_decay, 'decays': True},
            {'params': free, 'weight_decay': 0.0, 'decays': False}, *scaled]


def build_optimizer(name, groups, betas=(0.9, 0.999), official=False):
    """'lamb', 'adamw', 'sgd' or 'lars' (momentum 0.9), each with torch's `found_inf` protocol; `set_schedule`
    sets their rates.

    groups: as `parameter_groups` gives them. official: LAMB without bias correction, every parameter's step
    scaled by its norm. All but LARS, whose step is called off by the host, can be captured in a CUDA graph.
    """
    if name == 'lamb':
        return Lamb(groups, lr=0.0, betas=betas, eps=1e-6, bias_correction=not official, always_adapt=official)
    if name == 'lars':  # timm's scales a step where there is weight decay; MAE's probe has none, and scales
        return Lars([{**group, 'always_adapt': group['decays']} for group in groups], lr=0.0, momentum=0.9)
    if name == 'adamw':
        return AdamW(groups, lr=0.0, betas=betas, fused=True)
    return SGD(groups, lr=0.0, momentum=0.9, fused=True)


def set_schedule(optimizer, lr, weight_decay, floor=0.0):
    """Set the learning rate of all groups, or their share `lr_scale` of it, and the weight decay of those that decay.

    floor: the part of the learning rate that is the same for all groups. A share is one of the rest: a group has
    floor + lr_scale * (lr - floor).

    The numbers are set in the groups, which are saved, and on the device, where the step reads them. The host
    does not wait for that. After this the step no longer looks at the groups.
    """
    for group in optimizer.param_groups:
        scale = group.get('lr_scale', 1.0)
        group['lr'] = lr if scale == 1 else floor + scale * (lr - floor)
        if group['decays']:
            group['weight_decay'] = weight_decay
    rates = torch.tensor([[group['lr'], group['weight_decay']] for group in optimizer.param_groups],
                         dtype=torch.float64)
    device = next(p.device for group in optimizer.param_groups for p in group['params'])
    if device.type == 'cuda':
        rates = rates.pin_memory()
    if getattr(optimizer, 'rates', None) is None:
        optimizer.rates = torch.empty_like(rates, device=device)
    optimizer.rates.copy_(rates, non_blocking=True)


def rates_of(optimizer, index):
    """(learning rate, weight decay) of a group, by its number: 0-dim tensors on the device, or the group's own
    numbers where `set_schedule` was never called.

    On CUDA the learning rate is float32, which torch's fused kernels ask for. On the CPU it is float64: they
    compute with it as with a Python number.
    """
    rates = getattr(optimizer, 'rates', None)
    if rates is None:
        group = optimizer.param_groups[index]
        device = group['params'][0].device
        rates = torch.tensor([[group['lr'], group['weight_decay']]], dtype=torch.float64, device=device)
        index = 0
    if rates.is_cuda:
        rates = rates.float()
    return rates[index].unbind()


def subtract_scaled(tensors, others, factor):
    """tensors -= factor * others, in place. factor: a 0-dim tensor on the device.

    That is what a step of plain gradient descent does, for which torch has a fused kernel that reads the
    factor on the device.
    """
    sgd(tensors, others, [None] * len(tensors), fused=True, lr=factor, weight_decay=0.0, momentum=0.0,
        dampening=0.0, nesterov=False, maximize=False)


def with_gradients(group):
    return [p for p in group['params'] if p.grad is not None]


def load_state(optimizer, saved):
    """Load what `state_dict` gave, laid out in memory as the parameters are: torch's fused kernels take that for granted."""
    optimizer.load_state_dict(saved)
    for group in optimizer.param_groups:
        if torch.is_tensor(group.get('step')):  # of LAMB; torch moves only what belongs to parameters
            group['step'] = group['step'].to(group['params'][0].device)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020) with bias correction and gradient averaging: timm's `Lamb(max_grad_norm=None)`.

    Own code for two things: nothing is read on the host, and multi-tensor operations are used whatever timm's
    version. Adam's direction is what torch's fused AdamW makes of zeros with a learning rate of 1. The trust
    ratio applies to the groups that decay, also where the weight decay is 0 (unlike timm's), or to all (always_adapt).
    """

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, bias_correction=True, always_adapt=False):
        super().__init__(params, {'lr': lr, 'betas': betas, 'eps': eps, 'weight_decay': weight_decay,
                                  'bias_correction': bias_correction, 'always_adapt': always_adapt})

    @torch.no_grad()
    def step(self, closure=None):
        for index, group in enumerate(self.param_groups):
            params = with_gradients(group)
            for p in params:
                if not self.state[p]:
                    self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            if params:
                self._update(group, params, *rates_of(self, index))

    def _update(self, group, params, lr, decay):
        (beta1, beta2), device = group['betas'], params[0].device
        off = getattr(self, 'found_inf', None)
        go = torch.ones((), dtype=torch.float64, device=device) if off is None else 1 - off.double()
        done = group.setdefault('step', torch.zeros_like(go))

        corrects = group.get('bias_correction', True)  # as in files from before it was an option
        counts = (done if corrects else torch.full_like(done, FOREVER)).float().repeat(len(params)).unbind()
        means, squares = ([self.state[p][key] for p in params] for key in ('exp_avg', 'exp_avg_sq'))
        updates = [torch.empty_like(p) for p in params]
        torch._foreach_zero_(updates)
        adamw(updates, [p.grad for p in params], means, squares, [], list(counts), fused=True, found_inf=off, lr=1.0,
              beta1=beta1, beta2=beta2, eps=group['eps'], weight_decay=0.0, amsgrad=False, maximize=False)
        done += go

        rates = lr * go
        if group.get('decays', group['weight_decay'] != 0) or group.get('always_adapt'):
            subtract_scaled(updates, params, decay)
            weights, steps = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))
            trust = torch.where((weights > 0) & (steps > 0), weights / steps, 1.0)
            torch._foreach_mul_(updates, list((rates * trust).to(trust.dtype).unbind()))
        else:
            torch._foreach_mul_(updates, rates.to(updates[0].dtype))
        torch._foreach_add_(params, updates)


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW, whose weight decay is a tensor on the device too."""

    @torch.no_grad()
    def step(self, closure=None):
        off = getattr(self, 'found_inf', None)
        for index, group in enumerate(self.param_groups):
            params = with_gradients(group)
            for p in params:
                if not self.state[p]:
                    self.state[p].update(step=torch.zeros((), device=p.device), exp_avg=torch.zeros_like(p),
                                         exp_avg_sq=torch.zeros_like(p))
            if not params:
                continue
            lr, decay = rates_of(self, index)
            if group.get('decays', group['weight_decay'] != 0):
                shrinking = lr * decay if off is None else lr * decay * (1 - off)
                torch._foreach_mul_(params, (1 - shrinking).to(lr.dtype))
            steps, means, squares = ([self.state[p][key] for p in params]
                                     for key in ('step', 'exp_avg', 'exp_avg_sq'))
            beta1, beta2 = group['betas']
            adamw(params, [p.grad for p in params], means, squares, [], steps, fused=True, found_inf=off, lr=lr,
                  beta1=beta1, beta2=beta2, eps=group['eps'], weight_decay=0.0, amsgrad=False, maximize=False)


class SGD(torch.optim.SGD):
    """torch's fused SGD with momentum, whose weight decay is a tensor on the device too.

    The momentum begins with zeros: torch would take the first step's gradient for it, even that of a step
    which is called off.
    """

    def __init__(self, params, **options):
        super().__init__(params, **options)
        for p in (p for group in self.param_groups for p in group['params']):
            self.state[p]['momentum_buffer'] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure=None):
        for index, group in enumerate(self.param_groups):
            params = with_gradients(group)
            if not params:
                continue
            lr, decay = rates_of(self, index)
            gradients = [p.grad for p in params]
            if group.get('decays', group['weight_decay'] != 0):
                subtract_scaled(gradients, params, -decay)
            sgd(params, gradients, [self.state[p]['momentum_buffer'] for p in params], fused=True, lr=lr,
                found_inf=getattr(self, 'found_inf', None), weight_decay=0.0, momentum=group['momentum'],
                dampening=0.0, nesterov=False, maximize=False)


class Lars(timm.optim.Lars):
    """timm's LARS; a step that is called off is left out, which the host has to look at."""

    def step(self, closure=None):
        if not getattr(self, 'found_inf', 0.0):
            super().step(closure)


class BufferGuard:
    """Keeps a module's buffers (BatchNorm's running statistics) as they were, where a step is called off."""

    def __init__(self, module):
        self.by_dtype = {}
        for buffer in module.buffers():
            self.by_dtype.setdefault(buffer.dtype, []).append(buffer)

    def snapshot(self):
        return {dtype: torch.cat([b.flatten() for b in buffers]) for dtype, buffers in self.by_dtype.items()}

    @torch.no_grad()
    def restore(self, before, off):
        """Put the snapshot back where `off`, a 0-dim boolean tensor, is True; decided on the device."""
        for dtype, now in self.snapshot().items():
            buffers = self.by_dtype[dtype]
            kept = torch.where(off, before[dtype], now).split([b.numel() for b in buffers])
            torch._foreach_copy_(buffers, [part.view_as(b) for part, b in zip(kept, buffers)])


def weights_size(module):
    """Bytes of a module's parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def optimizer_size(optimizer):
    """Bytes, about, of what an optimiser keeps of the trained parameters: two values of each, of momentum alone one."""
    trained = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group['params'])
    return trained if isinstance(optimizer, (torch.optim.SGD, Lars)) else 2 * trained
