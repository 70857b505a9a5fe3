"""What the tests share: errors as the parity vectors define them, and layouts."""

import numpy as np
import torch


def relative_error(ours, theirs) -> float:
    """max|a - b| / max|b|."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def channels_first(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def channels_last(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), 1, -1)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Well-scaled random weights everywhere, so that no zero initialisation hides a branch."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(values / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * values + (1 if parameter.mean() > 0.5 else 0))
    return module.eval()
