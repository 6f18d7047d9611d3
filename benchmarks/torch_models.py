"""What torch offers to initialize the same models: construct and draw again, or start on meta.

torch draws its own laws when a module is made, so whoever wants others draws twice; on the meta
device the first draw is left out. Without torch the functions raise `ModuleNotFoundError`.
"""

from typing import Any

from jaxinit.report.gpt2 import POSITION_STDDEV, STDDEV, GPT2Config


def gpt2(config: GPT2Config, on_meta: bool = False) -> list[Any]:
    """The parameters of a GPT-2 whose head is tied to the embedding."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    width = config.width
    with torch.device("meta" if on_meta else "cpu"):
        tokens, positions = (
            nn.Embedding(config.vocabulary, width),
            nn.Embedding(config.positions, width),
        )
        blocks = [
            nn.ModuleDict(
                {
                    "ln_1": nn.LayerNorm(width),
                    "attn": nn.Linear(width, 3 * width),
                    "attn_proj": nn.Linear(width, width),
                    "ln_2": nn.LayerNorm(width),
                    "fc": nn.Linear(width, 4 * width),
                    "fc_proj": nn.Linear(4 * width, width),
                }
            )
            for _ in range(config.layers)
        ]
        model = nn.ModuleList([tokens, positions, *blocks, nn.LayerNorm(width)])

    def draw(name: str, module: Any) -> None:
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, POSITION_STDDEV if module is positions else STDDEV)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0, config.residual_stddev if name.endswith("proj") else STDDEV)
            module.bias.zero_()

    return _drawn(torch, model, on_meta, draw)


def mlp(layers: int, width: int, on_meta: bool = False) -> list[Any]:
    """The parameters of square linear layers with LeCun's law."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    with torch.device("meta" if on_meta else "cpu"):
        model = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])

    def draw(name: str, module: Any) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, 0, width**-0.5)
            module.bias.zero_()

    return _drawn(torch, model, on_meta, draw)


def _drawn(torch: Any, model: Any, on_meta: bool, draw: Any) -> list[Any]:
    if on_meta:
        model = model.to_empty(device="cpu")
    with torch.no_grad():
        for name, module in model.named_modules():
            draw(name, module)
    return list(model.parameters())
