"""How a run tells what it does: the progress line, a line an epoch, scalars, pictures of reconstructions."""
import time

import torch
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from common.checkpoint import write_atomically
from common.data import collate
from common.log import clock, duration

PICTURES = 8


class Progress:
    """Follows the losses of a run. `sums` (loss, gradient norm, steps of this epoch so far) is the part to save."""

    def __init__(self, run, log, sums=None):
        self.run, self.log, self.sums = run, log, list(sums or (0.0, 0.0, 0))
        self.seconds, self.timed = 0.0, 0  # spent in training steps, and how many: evaluation and saving do not count
        self.announced, self.held_out = False, ''

    @property
    def step_time(self):
        return self.seconds / max(self.timed, 1)

    def before(self, val_loss):
        """The held-out loss of the untrained network, where there are held-out images."""
        if val_loss is not None:
            self.held_out = f'held-out {val_loss:.4f}  '
            self.log.record({'epoch': 0, 'step': 0, 'val_loss': val_loss})
            self.log.scalars({'val_loss': val_loss}, 0)
            self.log.say(f'Before training the held-out loss is {val_loss:.4f}.')

    def start_epoch(self):
        self.began = time.perf_counter()
        self.epoch_seconds = self.epoch_steps = 0

    def look(self, results, seconds):
        """results: [(step, loss, gradient norm)] of the steps since the last look, which took so many seconds."""
        for _, loss, norm in results:
            self.sums[0], self.sums[1], self.sums[2] = self.sums[0] + loss, self.sums[1] + norm, self.sums[2] + 1
        self.seconds, self.timed = self.seconds + seconds, self.timed + len(results)
        self.epoch_seconds, self.epoch_steps = self.epoch_seconds + seconds, self.epoch_steps + len(results)
        step, loss, norm = results[-1]
        (lr, decay), left = self.run.schedule(step), (self.run.steps - 1 - step) * self.step_time
        rate = len(results) * self.run.options.batch_size / seconds
        self.log.scalars({'loss': loss, 'gradient_norm': norm, 'learning_rate': lr, 'weight_decay': decay,
                          'images_per_second': rate}, step + 1)
        self.log.progress(f'epoch {step // self.run.per_epoch + 1}/{self.run.options.epochs}  step {step + 1}/'
                          f'{self.run.steps}  loss {loss:.4f}  {self.held_out}lr {lr:.2e}  {rate:.1f} images/s  '
                          f'{duration(left)} left')
        if not self.announced:
            self.announced = True
            self.log.say(f'The first {self.timed} steps took {self.step_time:.2f} s each: about {duration(left)} to go, '
                         f'until {clock(left)}.')

    def end_epoch(self, epoch, val_loss, unreadable):
        """Write the line of an epoch (counted from 1) to the log and the terminal; unreadable: images so far."""
        step, (loss, norm, steps) = epoch * self.run.per_epoch, self.sums
        (lr, decay), left = self.run.schedule(step - 1), (self.run.steps - step) * self.step_time
        entry = {'epoch': epoch, 'step': step, 'loss': loss / steps, 'val_loss': val_loss, 'gradient_norm': norm / steps,
                 'lr': lr, 'weight_decay': decay, 'unreadable': unreadable,
                 'images_per_second': self.epoch_steps * self.run.options.batch_size / self.epoch_seconds,
                 'seconds': time.perf_counter() - self.began, 'remaining': duration(left), 'finish': clock(left)}
        self.sums = [0.0, 0.0, 0]
        self.log.record(entry)
        if val_loss is not None:
            self.held_out = f'held-out {val_loss:.4f}  '
            self.log.scalars({'val_loss': val_loss}, step)
        self.log.say(f'epoch {epoch}/{self.run.options.epochs}: loss {entry["loss"]:.4f}, '
                     + (f'held-out {val_loss:.4f}, ' if val_loss is not None else '')
                     + f'lr {lr:.2e}, gradient norm {entry["gradient_norm"]:.3f}, {entry["images_per_second"]:.1f} images/s, '
                     f'{duration(left)} left' + (f', {unreadable} unreadable images so far' if unreadable else ''))

    def picture(self, epoch, spark, watched):
        """Eight images of a data set, the same with the same masks every time, as PNG and in TensorBoard."""
        places = torch.linspace(0, len(watched) - 1, min(PICTURES, len(watched))).long().tolist()
        images = collate([watched[(0, place)] for place in places])[0].to(self.run.ranks.device)
        visible = spark.draw_visible(len(images), self.run.generator('picture')).to(images.device)
        with self.run.autocast():
            grid = reconstruction_picture(spark, images, visible, self.run.options.normalisation)
        path = self.run.folder / 'reconstructions' / f'epoch_{epoch:04}.png'
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda file: to_pil_image(grid).save(file, 'PNG'))
        self.log.picture('input, masked, reconstruction', grid, epoch * self.run.per_epoch)


@torch.no_grad()
def reconstruction_picture(spark, images, visible, normalisation):
    """images (B, C, H, W), normalised -> (3, H', W') in [0, 1]: rows of input, masked input, reconstruction.

    Hidden cells are shown with their true mean and deviation (SparK.reconstruct). Of more than three channels the first
    three are shown, of two the first.
    """
    mode = spark.training
    spark.eval()
    reconstruction = spark.reconstruct(images, visible)
    spark.train(mode)
    masked = spark.paste(spark.cut(images) * spark.geometry(images, visible).is_visible()[..., None])
    mean, std = (torch.tensor(value, device=images.device).view(1, -1, 1, 1) for value in normalisation)
    rows = torch.cat([images, masked, reconstruction]) * std + mean
    rows = rows[:, :3] if rows.shape[1] >= 3 else rows[:, :1].expand(-1, 3, -1, -1)
    return make_grid(rows.clamp(0, 1), nrow=len(images), padding=2, pad_value=1.0).cpu()
