"""What a GPU drew, by NVML's own counter: package nvidia-ml-py, where it is installed. Nothing is guessed."""
import torch


class Meter:
    """The energy of this process's GPU since the last look; None where NVML cannot tell."""

    def __init__(self, device):
        self.read = self.before = None
        if device.type == 'cuda':
            try:
                import pynvml
                pynvml.nvmlInit()
                # By its identity: CUDA_VISIBLE_DEVICES renumbers CUDA's GPUs and not NVML's.
                gpu = pynvml.nvmlDeviceGetHandleByUUID(f'GPU-{torch.cuda.get_device_properties(device).uuid}')
                self.read = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
                self.before = self.read()
            except Exception:  # no package, no driver, a GPU without a counter: then it is not measured
                self.read = None

    def kwh(self):
        """Since the last call, in kWh; None if it is not measured."""
        if self.read is None:
            return None
        try:
            before, self.before = self.before, self.read()
        except Exception:  # a GPU that fell off the bus must not stop a run here
            self.read = None
            return None
        return (self.before - before) / 3.6e9  # millijoules
