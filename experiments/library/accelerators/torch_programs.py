"""The layer and ResNet-50 in PyTorch: channels last, with cuDNN on a GPU.

They are written as users of PyTorch write them: float32 parameters, `torch.autocast`,
SGD. This module is imported only if PyTorch is installed.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Layer(nn.Module):
    """A normalisation between two 1x1 convolutions."""

    def __init__(self, channels: int, wide: int):
        super().__init__()
        self.widen = nn.Conv2d(channels, wide, 1, bias=False)
        self.norm = nn.BatchNorm2d(wide)
        self.narrow = nn.Conv2d(wide, channels, 1, bias=False)

    def forward(self, x):
        """Returns an array of the same shape as `x`, `[N, C, H, W]`."""
        return self.narrow(torch.relu_(self.norm(self.widen(x))))


class Bottleneck(nn.Module):
    """A block of ResNet-50 v1.5."""

    def __init__(self, channels: int, features: int, stride: int, projection: bool):
        super().__init__()
        wide = 4 * features
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(channels, features, 1, bias=False),
                nn.Conv2d(features, features, 3, stride, 1, bias=False),
                nn.Conv2d(features, wide, 1, bias=False),
            ]
        )
        sizes = (features, features, wide)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes)
        self.shortcut: nn.Module = nn.Identity()
        if projection:
            conv = nn.Conv2d(channels, wide, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(wide))

    def forward(self, x):
        """Returns `[N, 4 * features, H / stride, W / stride]` from `[N, C, H, W]`."""
        y = torch.relu_(self.norms[0](self.convs[0](x)))
        y = torch.relu_(self.norms[1](self.convs[1](y)))
        y = self.norms[2](self.convs[2](y))
        return torch.relu_(y.add_(self.shortcut(x)))


def resnet(blocks: tuple[int, ...], classes: int = 1000) -> nn.Module:
    """Returns a ResNet with `blocks` blocks per stage; ResNet-50 has (3, 4, 6, 3)."""
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    parts: list[nn.Module] = [
        stem,
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for stage, number in enumerate(blocks):
        features = 64 * 2**stage
        for block in range(number):
            stride = 2 if stage and not block else 1
            parts.append(Bottleneck(channels, features, stride, not block))
            channels = 4 * features
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*parts, *head)


def training(
    network: nn.Module, images: int, size: int, dtype: str
) -> Callable[[], Any]:
    """Returns a program that runs one SGD step: forward, backward and update."""
    device, wait = _device()
    network = network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    x = _channels_last(torch.randn(images, 3, size, size), device)
    labels = torch.randint(0, 10, (images,), device=device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with _computing(device, dtype):
            loss = nn.functional.cross_entropy(network(x).float(), labels)
        loss.backward()
        optimizer.step()
        wait()

    return step


def layer(shape: tuple[int, int, int, int], wide: int, dtype: str) -> Callable[[], Any]:
    """Returns a program that runs the layer forward and backward.

    The gradients are those of the parameters and of an input of the given shape.
    """
    device, wait = _device()
    network = Layer(shape[1], wide).to(device).to(memory_format=torch.channels_last)
    parameters = list(network.train().parameters())
    x = torch.randn(shape).to(getattr(torch, dtype))
    x = _channels_last(x, device).requires_grad_()
    dy = torch.randn_like(x)

    def both():
        with _computing(device, dtype):
            y = network(x)
        torch.autograd.grad(y, (x, *parameters), dy.to(y.dtype))
        wait()

    return both


def _device() -> tuple[str, Callable[[], None]]:
    torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cudnn.benchmark = True  # cuDNN chooses its fastest algorithm.
    if torch.cuda.is_available():
        return "cuda", torch.cuda.synchronize
    return "cpu", lambda: None


def _channels_last(x: torch.Tensor, device: str) -> torch.Tensor:
    return x.to(device).contiguous(memory_format=torch.channels_last)


def _computing(device: str, dtype: str) -> torch.autocast:
    computing = getattr(torch, dtype)
    return torch.autocast(device, computing, enabled=dtype != "float32")
