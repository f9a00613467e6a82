"""A2MIM against the numbers of the authors' program, in float64."""
import copy
import math

import pytest
import torch

from common.training.optim import build_optimizer, set_schedule
from common.training.schedule import CosineToFloor
from tests.pretrain.official_a2mim import close, loaded
from tests.pretrain.test_a2mim_loss import check_heads

MODELS = ('resnet26', 'convnext_tiny', 'vit')


@pytest.fixture(scope='module', params=MODELS)
def case(request):
    return loaded(request.param)


def fresh(case):
    """The case's network with its weights of the beginning."""
    want, a2mim, images, visible = case
    return want, copy.deepcopy(a2mim), images, visible


def our_name(name, want):
    """An official name of a parameter -> ours."""
    if name.startswith('neck.'):
        return 'decoder.' + name.rpartition('.')[2]
    if name == 'backbone.mask_token':
        return 'encoder.mask_token'
    if name == 'backbone.mask_gamma':
        return 'encoder.mask_gain'
    return 'encoder.cnn.' + want['timm'][name]


def look(a2mim, images, visible):
    """(the map before the token, the map with it, the last map, the reconstruction)."""
    seen = []
    module = a2mim.encoder.cnn.get_submodule(a2mim.encoder.token_at)
    before = module.register_forward_hook(lambda m, i, out: seen.append(out.detach().clone()), prepend=True)
    after = module.register_forward_hook(lambda m, i, out: seen.append(out.detach().clone()))
    features = a2mim.encode(images, visible)
    before.remove()
    after.remove()
    return *seen, features.detach(), a2mim.decode(features).detach()


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_features_reconstruction_and_loss(case, mode):
    want, a2mim, images, visible = fresh(case)
    expected = want[mode]
    a2mim.train(mode == 'train')
    hidden = a2mim.hidden(images, visible)
    means = torch.tensor(want['image_mean'], dtype=torch.float64)
    torch.testing.assert_close(images.mean((2, 3)), means, rtol=1e-9, atol=1e-12)
    close(a2mim.fill(images, hidden), want['masked_input'])
    token_in, token_out, last, y = look(a2mim, images, visible)
    for got, name in ((token_in, 'token_in'), (token_out, 'token_out'), (last, 'last_map'), (y, 'reconstruction')):
        if got.ndim == 3 and len(expected[name]['shape']) == 3 and got.shape[1] != expected[name]['shape'][1]:
            got = got.transpose(1, 2)
        close(got, expected[name])
    pasted = torch.where(a2mim.hidden_pixels(hidden) > 0, y, images)
    close(pasted, expected['pasted'])
    probe = token_out[:, 0, :4] if token_out.ndim == 3 else token_out[:, :4, 0, 0]
    torch.testing.assert_close(probe, torch.tensor(expected['token_out_probe'], dtype=torch.float64), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(y[:, :, 17, 5], torch.tensor(expected['reconstruction_probe'], dtype=torch.float64),
                               rtol=1e-9, atol=1e-11)
    losses = a2mim.losses(images, y, hidden)
    for ours, theirs in (('loss', 'loss'), ('spatial', 'loss_spatial'), ('frequency', 'loss_frequency')):
        if expected[theirs] is None or losses[ours] is None:
            assert losses[ours] is None and expected[theirs] in (None, 0.0)
        else:
            assert losses[ours].item() == pytest.approx(expected[theirs], rel=1e-9)


def test_gradients_and_running_statistics(case):
    want, a2mim, images, visible = fresh(case)
    loss = a2mim.train()(images, visible)
    assert loss.item() == pytest.approx(want['train']['loss'], rel=1e-9)
    loss.backward()
    parameters = dict(a2mim.named_parameters())
    for name, expected in want['grad_norm'].items():
        gradient = parameters[our_name(name, want)].grad
        assert gradient.norm().item() == pytest.approx(expected, rel=1e-9, abs=1e-12), name
    total = math.sqrt(sum(p.grad.square().sum().item() for p in parameters.values() if p.grad is not None))
    assert total == pytest.approx(want['grad_norm_total'], rel=1e-9)
    state = a2mim.state_dict()
    for name, expected in want['running_mean_sum_after_1'].items():
        assert state[our_name(name, want)].sum().item() == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_all_forms_of_the_loss(case):
    want, a2mim, images, visible = fresh(case)
    hidden = a2mim.hidden(images, visible)
    with torch.no_grad():
        y = a2mim.train().predict(images, visible)
    pixels = a2mim.hidden_pixels(hidden)
    check_heads(want['heads'], y, images, pixels)


def test_training_steps(case):
    want, a2mim, images, visible = fresh(case)
    steps = want['train_steps']
    parameters = dict(a2mim.train().named_parameters())
    decay = steps['weight_decay']
    groups = [{'params': [parameters[our_name(name, want)]], 'weight_decay': decay if name in steps['decayed'] else 0.0,
               'decays': name in steps['decayed'], 'lr_scale': 0.1 if name in steps['lr_x_0_1'] else 1.0}
              for name in want['grad_norm']]  # the authors', which are not ours
    optimizer = build_optimizer('adamw', groups, tuple(steps['betas']))
    curve = CosineToFloor(steps['min_lr'])
    for t, (loss_want, norm_want) in enumerate(zip(steps['loss'], steps['grad_norm'])):
        share, floor = curve.parts(t, steps['max_iters'], steps['warmup_iters'])
        set_schedule(optimizer, floor + share * steps['peak_lr'], decay, floor=floor)
        rates = {group['lr_scale']: group['lr'] for group in optimizer.param_groups}
        assert rates[1.0] == pytest.approx(steps['lr'][t], rel=1e-12, abs=1e-18)
        if 0.1 in rates:
            assert rates[0.1] == pytest.approx(steps['lr_slow'][t], rel=1e-12, abs=1e-18)
        loss = a2mim(images, visible)
        assert loss.item() == pytest.approx(loss_want, rel=1e-7)
        a2mim.zero_grad()
        loss.backward()
        trained = [p for p in a2mim.parameters() if p.grad is not None]
        clip = steps.get('max_grad_norm') or float('inf')
        assert torch.nn.utils.clip_grad_norm_(trained, clip).item() == pytest.approx(norm_want, rel=1e-6)
        optimizer.step()
