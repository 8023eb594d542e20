"""VGG networks with batch normalisation for 32-pixel images (vgg8, vgg11, vgg13). Architectures only.

Source: Simonyan and Zisserman 2015 (arXiv:1409.1556), shortened to one linear layer as in the public benchmark code of
Tian et al. 2020 (arXiv:1910.10699).
"""

from __future__ import annotations

from torch import Tensor, nn

VGG_STAGES: dict[int, tuple[tuple[int, ...], ...]] = {
    8: ((64,), (128,), (256,), (512,), (512,)),
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
}


class CifarVgg(nn.Module):
    """Five stages of 3x3 convolutions, max pooling between the first four, one linear layer.

    Args:
        depth: 8, 11 or 13.
        num_classes: K.
        channels: channels of the images.
    """

    def __init__(self, depth: int, num_classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage, widths in enumerate(VGG_STAGES[depth]):
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            if (
                stage < 3
            ):  # a fourth pooling would leave 2x2 at 32 pixels; the papers' form keeps 4x4 for the last stages
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 -> logits (B, K)."""
        logits: Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return logits
