"""A tiny vision transformer in a file of a user's own, and streams for it."""

from cl_ovq.imports import import_parts

CODE = '''"""A vision transformer for images of 8 x 8 pixels."""

import torch
from timm.models.vision_transformer import VisionTransformer


class Tiny(VisionTransformer):
    def __init__(self):
        torch.manual_seed(3)
        super().__init__(img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=2, num_heads=4, num_classes=0)
        for weight in self.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)


class Averaged(VisionTransformer):
    def __init__(self):
        super().__init__(
            img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=1, num_heads=4, num_classes=0, global_pool="avg"
        )
'''


def write_experiment(folder):
    """Write code and an experiment on three classes of digits at a time; return the experiment's path."""
    code, path = folder / "tiny.py", folder / "tiny.yaml"
    code.write_text(CODE)
    import_parts([str(code)])
    path.write_text(
        "stream: {name: split_digits, experiences: 3}\n"
        f"encoder: {{name: file, model: '{code}:Tiny'}}\n"
        "model: {name: pixels}\nstrategy: {name: naive, batch_size: 128}\noptimizer: {learning_rate: 0.01}\n"
        "figures: false\ntracking: {enabled: false}\n"
    )
    return path


def tiny(folder, name="Tiny"):
    """The network of the file."""
    names = {"__file__": str(folder / "tiny.py")}
    exec(CODE, names)
    return names[name]()
