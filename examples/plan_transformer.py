"""A plan: rules over paths that give every leaf of a transformer its law.

The plan is made from shapes alone, checked before anything is allocated, printed, drawn, held
to its laws, and compared with a variant.

    python examples/plan_transformer.py
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxinit
import jaxinit.flax
from jaxinit import initializers as init


class Block(nn.Module):
    """A pre-LayerNorm block."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="ln_1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(y, y)
        y = nn.Dense(4 * self.width, name="up")(nn.LayerNorm(name="ln_2")(x))
        return x + nn.Dense(self.width, name="down")(nn.gelu(y))


class Transformer(nn.Module):
    """Token and position tables, blocks, and a head tied to the token table."""

    vocabulary: int
    width: int
    heads: int
    layers: int

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(self.vocabulary, self.width, name="tokens")
        positions = self.param("positions", nn.initializers.normal(0.02), (64, self.width))
        x = embed(tokens) + positions[: tokens.shape[1]]
        for layer in range(self.layers):
            x = Block(self.width, self.heads, name=f"block_{layer}")(x)
        return embed.attend(nn.LayerNorm(name="ln_out")(x))


def rules(layers: int):
    """GPT-2's scheme: residual outputs are scaled down by the number of residual branches."""
    residual = init.scaled(init.normal(0.02), (2 * layers) ** -0.5)
    return [
        ("**/attention/out/kernel", residual),
        ("**/down/kernel", residual),
        ("**/kernel", init.normal(0.02)),
        ("**/{embedding,positions}", init.normal(0.02)),
        ("**/scale", init.ones),
        ("**/bias", init.zeros),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="2 layers of 64 instead of 4 of 256")
    layers, width = (2, 64) if parser.parse_args().small else (4, 256)

    model = Transformer(vocabulary=1000, width=width, heads=4, layers=layers)
    tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    tree = jaxinit.flax.linen_tree(model, tokens)  # shapes and true axes; nothing is allocated
    plan = jaxinit.plan(tree, rules(layers))
    print(plan)

    variables = plan.init(jax.random.key(0))
    jaxinit.checks.assert_laws(variables, plan)
    jaxinit.checks.assert_symmetry_broken(variables, plan)
    print(f"\n{plan.size:,} parameters, laws and symmetry hold")
    print(f"fingerprint {jaxinit.fingerprint(variables).tree}")

    he = [("**/{up,down}/kernel", init.he_normal()), *rules(layers)[0:1], *rules(layers)[2:]]
    print(f"\nWith He in the feed-forward layers:\n{plan.diff(jaxinit.plan(tree, he))}")

    # Re-initialise the output projections only; everything else stays as it is.
    fresh = plan.init(jax.random.key(1), only="**/down/kernel", keep=variables)
    same = jax.tree.map(lambda a, b: a is b, variables, fresh)
    print(f"\nRe-drawn: {sum(not leaf for leaf in jax.tree.leaves(same))} leaves")

    try:
        jaxinit.plan(tree, [("**/kernel", init.normal(0.02)), ("**/biases", init.zeros)])
    except ValueError as error:
        print(f"\nA rule that misses is an error:\n{error}")


if __name__ == "__main__":
    main()
