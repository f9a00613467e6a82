"""ConvMAE against the numbers of the authors' programs, in float64."""
import copy

import pytest
import torch

from pretrain.convmae import build_convmae
from tests.pretrain.official_convmae import close, convvit, golden, golden_images, official_state

CASES = ['convmae_small_224', pytest.param('convmae_base_224', marks=pytest.mark.slow)]


def loaded(name, **arguments):
    """(the golden file, ConvMAE in float64 with its weights, images)."""
    want = golden(name)
    made = want['constructor']
    convmae = build_convmae(convvit(want), want['input_size'], decoder_width=made['decoder_embed_dim'],
                            decoder_depth=made['decoder_depth'], decoder_heads=made['decoder_num_heads'], **arguments)
    convmae = convmae.double()
    convmae.load_official(official_state(want['keys']))
    return want, convmae, golden_images(want)


@pytest.fixture(scope='module', params=CASES)
def case(request):
    return loaded(request.param)


def official_name(name):
    return name.removeprefix('encoder.cnn.')


def captured(convmae, run):
    """{official name of a module: its output} of all modules of a run."""
    found = {}
    handles = [module.register_forward_hook(lambda m, i, out, name=name: found.update({official_name(name): out}))
               for name, module in convmae.named_modules()]
    run()
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def test_features_and_predictions(case):
    want, convmae, images = case
    visible = torch.tensor(want['visible'])
    found = captured(convmae, lambda: convmae(images, visible))
    expected = want['features']
    geometry = convmae.geometry(images, visible)
    for module, name in (('blocks1', 'stage1'), ('blocks2', 'stage2'), ('patch_embed1', 'embed1'), ('patch_embed2', 'embed2'),
                         ('patch_embed3', 'embed3')):
        close(geometry.to_canvas(found[module]), expected[name]['visible'])
    for module, name in (('patch_embed4', 'embed4'), ('blocks3', 'stage3'), ('norm', 'latent')):
        close(found[module], expected[name]['visible'])
    for i in (1, 2):
        fused = found[f'stage{i}_output_decode'].flatten(2).transpose(1, 2)
        close(fused, expected[f'fuse{i}']['visible'])
    close(found['decoder_norm'], expected['decoder_norm']['everywhere'])
    close(found['decoder_pred'], want['prediction']['everywhere'])
    hidden = torch.tensor([[sign == '1' for sign in signs] for signs in want['mask']])
    close(found['decoder_pred'] * hidden[..., None], want['prediction']['hidden'])
    for got, probe in ((found['norm'], expected['latent']['probe']), (found['decoder_pred'], want['prediction']['probe'])):
        torch.testing.assert_close(got[0, :3, :4], torch.tensor(probe, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    for level, name in zip(convmae.encode(images, visible), ('stage1', 'stage2')):
        close(level, expected[name]['visible'])
    torch.testing.assert_close(convmae.latent(images, visible), found['norm'], rtol=0, atol=0)


def test_losses_and_gradients(case):
    want, convmae, images = copy.deepcopy(case)
    visible = torch.tensor(want['visible'])
    loss = convmae(images, visible)
    loss.backward()
    assert loss.item() == pytest.approx(want['loss_norm_pix'], rel=1e-10)
    check_gradients(convmae, want)
    convmae.target = 'pixels'
    convmae.zero_grad()
    loss = convmae(images, visible)
    loss.backward()
    assert loss.item() == pytest.approx(want['loss_plain'], rel=1e-10)
    assert total_norm(convmae) == pytest.approx(want['grad_norm_total_plain'], rel=1e-10)


def total_norm(network):
    norms = [parameter.grad.norm() for parameter in network.parameters() if parameter.grad is not None]
    return torch.stack(norms).norm().item()


def check_gradients(convmae, want):
    norms = {official_name(name): parameter.grad.norm().item() for name, parameter in convmae.named_parameters()
             if parameter.grad is not None}
    assert norms == pytest.approx(want['grad_norm'], rel=1e-10)
    assert total_norm(convmae) == pytest.approx(want['grad_norm_total'], rel=1e-10)


def test_fast_convmae_is_the_mean_over_complementary_masks():
    want, convmae, images = loaded('fastconvmae_small_224', masks_per_image=4)
    visible = torch.tensor(want['visible']).transpose(0, 1)
    loss = convmae(images, visible)
    loss.backward()
    assert loss.item() == pytest.approx(want['loss'], rel=1e-10)
    check_gradients(convmae, want)
    with torch.no_grad():
        losses = [convmae(images, visible[:, group]).item() for group in range(4)]
        repeated, masks = images.repeat_interleave(4, 0), visible.flatten(0, 1)
        prediction = convmae.decode(convmae.latent(repeated, masks), masks)
    assert losses == pytest.approx(want['loss_of_groups'], rel=1e-10)
    close(prediction, want['prediction'])


def test_training_steps():
    """The losses of steps by our optimiser, along our curve of the learning rate."""
    from common.training.optim import build_optimizer, set_schedule
    from pretrain.convmae_method import ConvMAEMethod
    from pretrain.convmae_options import ConvMAEOptions
    want, convmae, images = loaded('convmae_small_224')
    visible, steps = torch.tensor(want['visible']), want['train_steps']
    method = ConvMAEMethod()
    options = ConvMAEOptions(name='golden', weight_decay=steps['weight_decay'])
    groups = method.parameter_groups(convmae, options)
    optimizer = build_optimizer('adamw', groups, method.betas(convmae, options))
    curve = method.curve(options)
    per_epoch = steps['steps_per_epoch']
    for step, (loss, rate, norm) in enumerate(zip(steps['loss'], steps['lr'], steps['grad_norm'])):
        share, floor = curve.parts(step, steps['epochs'] * per_epoch, steps['warmup_epochs'] * per_epoch)
        lr = floor + share * steps['peak_lr']
        assert lr == pytest.approx(rate, rel=1e-12)
        set_schedule(optimizer, lr, options.weight_decay)
        optimizer.zero_grad()
        ours = convmae(images, visible)
        ours.backward()
        assert ours.item() == pytest.approx(loss, rel=1e-9)
        assert total_norm(convmae) == pytest.approx(norm, rel=1e-9)
        optimizer.step()


def test_hidden_pixels_change_the_latent_by_exactly_nothing():
    want, convmae, images = loaded('convmae_small_224')
    visible = torch.tensor(want['visible'])
    hidden = convmae.unpatchify(convmae.patchify(torch.ones_like(images)) * ~convmae.is_visible(visible))
    noise = 100 * torch.randn(images.shape, dtype=images.dtype, generator=torch.Generator().manual_seed(0))
    other = torch.where(hidden > 0, noise, images)
    with torch.no_grad():
        change = convmae.latent(other, visible) - convmae.latent(images, visible)
    assert not torch.equal(other, images)
    assert change.abs().max().item() == want['leak'] == 0
