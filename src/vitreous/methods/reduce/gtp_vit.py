"""GTP-ViT: tokens that leave hand what they hold to their neighbours in a graph."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitreous.catalog.card import Card
from vitreous.errors import ModelError, did_you_mean
from vitreous.layers.attention import AttentionCore
from vitreous.layers.graphs import recording
from vitreous.layers.tokens import front_places, gather_tokens, keep_left, log_size, returned
from vitreous.layers.transformer import Block, Carry, Grid, Trace
from vitreous.methods.reduce._install import per_block, put, rows, trunk
from vitreous.models import vit
from vitreous.models.vit import VisionTransformer

CARD = Card(
    slug="gtp_vit",
    title="GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation",
    kind="method",
    summary="In every block removes a few patches and propagates their features to patches they "
    "are linked with in a graph of spatial and semantic neighbours.",
    when="Token reduction without training. It lost less than a point here where a third of "
    "the cost was saved, as did pruning the same tokens.",
    paper="arXiv 2311.03035",
    year=2023,
    source_licence="Apache-2.0 (Ackesnal/GTP-ViT): re-implemented from the equations",
    tasks=["classify"],
    models=["vit_*", "ggem_*", "t2t_vit_*", "channelvit_*", "satmae_pp_*"],
    variants={"gtp_vit": {"leaving": 0.041}},
    published=[
        {"model": "vit_small", "leaving": 2, "gmacs": 4.33, "parameters_m": 22.051},
        {"model": "vit_small", "leaving": 4, "gmacs": 4.03, "parameters_m": 22.051},
        {"model": "vit_small", "leaving": 6, "gmacs": 3.74, "parameters_m": 22.051},
        {"model": "vit_small", "leaving": 8, "gmacs": 3.45, "parameters_m": 22.051},
        {"model": "vit_small", "leaving": 10, "gmacs": 3.16, "parameters_m": 22.051},
        {"model": "vit_small", "leaving": 12, "gmacs": 2.88, "parameters_m": 22.051},
        {"model": "vit_small", "leaving": 14, "gmacs": 2.60, "parameters_m": 22.051},
        {"model": "vit_base", "leaving": 8, "gmacs": 13.16, "parameters_m": 86.568},
    ],
    recipe={"search": {"theta": [0.1, 1.0], "neighbours": [1, 10], "alpha": [0.1, 0.5]}},
    claim="Saves a quarter of DeiT-S's multiply-adds for 0.3 points of top-1 accuracy without "
    "training; merging loses more and is slower.",
    miniature="A trained small ViT without fine-tuning, compared with pruning, with fusing "
    "removed patches into one mean token, and with the run time of bipartite matching.",
    notes=[
        "Usage: 'leaving' is the paper's P: a number of patches per block, or a fraction of "
        "those at the model's image size (at least 1); 0.041 is the paper's 8 of 196. At least "
        "one patch stays.",
        "Usage: theta and alpha are the README's for DeiT-B at P = 8; the paper searches them, "
        "and the neighbours M, for each P.",
        "Usage: Class, distillation and register tokens are never removed and have no links.",
        "Usage: In mode dense, patches that were removed return to the decoder's maps as they left.",
        "Differs from the reference: A token has the same M nearest neighbours with and without "
        "a class token; in the authors' code the count shifts by one without it. A token without "
        "links propagates nothing.",
        "Not specified in the paper: With propagation='mean' the scale of the new token is the "
        "sum of those it replaces.",
    ],
)
KINDS = ("class", "image", "diagonal", "mixed", "sum", "cosine")
SELECTIONS = (*(f"{kind}_{heads}" for kind in KINDS for heads in ("mean", "max")), "random")
PROPAGATIONS = ("graph", "mean", "none")
GRAPHS = ("spatial", "semantic", "mixed")
CACHED = 2**18  # attention weights at a time, so that they stay close to the processor


class Propagation(nn.Module):
    """One block's attention; then some patches leave and hand on what they hold (arXiv 2311.03035, section 3).

    From block to block go ``graph``, how much each token hands to each, by the places that they have at first
    (``alpha`` is in it); ``places``, those of the tokens that are left; ``scale``, how many tokens each stands for.
    What is absent has not begun to matter: there is no graph, all tokens are in their places, all scales are 1.

    Args:
        leaving: P, how many patches leave.
        prefix: tokens in front of the patches.
        neighbours: M, how many tokens each is linked with by content.
        theta: share of the attention weights that count.
        alpha: factor of what is handed on.
        selection: what speaks for a patch.
        propagation: ``graph``, ``mean`` or ``none``.
        token_scale: as a key, let a token weigh as much as its scale.
        graph: ``spatial``, ``semantic`` or ``mixed``.
        seed: of a random choice in evaluation.
    """

    def __init__(
        self,
        leaving: int,
        prefix: int,
        *,
        neighbours: int,
        theta: float,
        alpha: float,
        selection: str,
        propagation: str,
        token_scale: bool,
        graph: str,
        seed: int,
    ) -> None:
        super().__init__()
        self.leaving, self.prefix, self.theta, self.alpha = leaving, prefix, theta, alpha
        self.neighbours, self.graph, self.seed = neighbours, graph, seed
        self.selection, self.propagation, self.token_scale = selection, propagation, token_scale

    def count(self, patches: int) -> int:
        """Return how many of so many patches leave."""
        return min(self.leaving, patches - 1)

    def after(self, patches: int) -> int:
        """Return how many patches there are behind this block."""
        leaving = self.count(patches)
        return patches - leaving + (leaving > 0 and self.propagation == "mean")

    restore = staticmethod(returned)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        block: Block,
        carry: Carry | None,
        grid: Grid | None = None,
    ) -> tuple[Float[Tensor, "batch kept dim"], Carry | None]:
        """Attend, then let patches leave."""
        carry = carry or {}
        if "graph" not in carry:
            carry = {**carry, **self.begin(x, grid)}
        leaving = self.count(x.shape[1] - self.prefix)
        bias = log_size(carry["scale"]) if "scale" in carry else None
        trace = block.attn.project(block.norm1(x))
        mixed, score = self.attend(block.attn.core, trace, bias, grid, score=leaving > 0)
        x = block.add(x, block.attn.join(mixed))
        if score is None:
            return x, carry
        order = self.prefix + ranked(score)
        front = front_places(x, self.prefix)
        stay, leave = torch.cat([front, order[:, :-leaving]], 1), order[:, -leaving:]
        return self.propagate(x, stay, leave, carry)

    # -- what speaks for a token (section 3.2) ----------------------------------------------------------------

    def attend(
        self,
        core: AttentionCore,
        trace: Trace,
        bias: Tensor | None,
        grid: Grid | None = None,
        *,
        score: bool,
    ) -> tuple[Float[Tensor, "batch heads tokens width"], Float[Tensor, "batch patches"] | None]:
        """Return what the heads give and, where asked for, a score for each patch; low ones leave.

        Attention stays fused where nobody has to see its weights.
        """
        batch, _, tokens, _ = trace.query.shape
        if self.theta == 1 and (not score or self.selection == "random"):
            mixed = core(*trace, bias, grid)
            return mixed, self.draw(batch, tokens, mixed.device) if score else None
        if self.theta == 1 and self.selection.startswith("class"):
            row = core.weights(trace.query[:, :, :1], trace.key, bias, grid)
            return core(*trace, bias, grid), self.score(row)
        if torch.is_grad_enabled() or recording() or not core.fused:
            mixed, found = self._attend(core, trace, bias, grid)
        else:
            mixed, found = self._in_turn(core, trace, bias, grid)
        return mixed, found if score else None

    def _attend(
        self, core: AttentionCore, trace: Trace, bias: Tensor | None, grid: Grid | None
    ) -> tuple[Float[Tensor, "batch heads tokens width"], Float[Tensor, "batch patches"]]:
        """Attend step by step, with the largest weights only."""
        weights = largest(core.weights(trace.query, trace.key, bias, grid), self.theta)
        return core.matmul_av(weights, trace.value), self.score(weights)

    def _in_turn(
        self, core: AttentionCore, trace: Trace, bias: Tensor | None, grid: Grid | None
    ) -> tuple[Float[Tensor, "batch heads tokens width"], Float[Tensor, "batch patches"]]:
        """Attend as above, to a few images at a time: their weights, read several times, stay in the cache."""
        batch, heads, tokens, _ = trace.query.shape
        step = max(1, CACHED // (heads * tokens**2))
        parts = []
        for first in range(0, max(batch, 1), step):
            part = slice(first, first + step)
            own = Trace(trace.query[part], trace.key[part], trace.value[part])
            parts.append(self._attend(core, own, None if bias is None else bias[part], grid))
        mixed, scores = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return mixed, scores

    def score(
        self, weights: Float[Tensor, "batch heads queries tokens"]
    ) -> Float[Tensor, "batch patches"]:
        """Return what speaks for each patch: what it is given by the class token, by all tokens, by itself, ..."""
        kind, _, over = self.selection.partition("_")

        def join(values: Tensor) -> Tensor:
            return values.mean(1) if over == "mean" else values.amax(1)

        if kind == "random":
            return self.draw(weights.shape[0], weights.shape[-1], weights.device)
        if kind == "class":
            return join(weights[:, :, 0])[:, self.prefix :]
        if kind == "cosine":
            rows = F.normalize(join(weights)[:, self.prefix :], dim=-1)
            return -(rows @ rows.sum(1)[..., None])[..., 0]  # of all pairs, without the pairs
        if kind == "image":
            found = join(weights.sum(2))
        elif kind == "diagonal":
            found = join(weights.diagonal(dim1=2, dim2=3))
        else:
            found, own = join(weights.sum(2)), join(weights.diagonal(dim1=2, dim2=3))
            found = found * own if kind == "mixed" else found + own
        return found[:, self.prefix :]

    def draw(self, batch: int, tokens: int, device: torch.device) -> Float[Tensor, "batch patches"]:
        """Return random scores; in evaluation the same for all images and at every call."""
        patches = tokens - self.prefix
        if self.training:
            return torch.rand(batch, patches, device=device)
        fixed = random.Random(self.seed)
        return torch.tensor([fixed.random() for _ in range(patches)], device=device).expand(
            batch, -1
        )

    # -- who receives what (sections 3.1 and 3.3) -------------------------------------------------------------

    def begin(self, x: Float[Tensor, "batch tokens dim"], grid: Grid | None = None) -> Carry:
        """Return what the first block starts from: the graph of the embedded patches, if it is used.

        Args:
            x: the tokens.
            grid: rows and columns of the patches; as many as fit into a square where not given.
        """
        if self.propagation != "graph" or self.alpha == 0:
            return {}
        patches = x.detach()[:, self.prefix :]
        if self.graph == "semantic":
            links = similar(patches, self.neighbours)
        else:
            links = self._adjacent(patches.shape[1], grid, x.device)[None]
        if self.graph == "mixed":
            links = links | similar(patches, self.neighbours)
        # Transposed, so that a row says where its token hands itself to; the tokens in front are linked with nothing.
        weights = self.alpha * normalised(links.to(x.dtype)).mT
        return {"graph": F.pad(weights, (self.prefix, 0, self.prefix, 0))}

    def _adjacent(
        self, patches: int, grid: Grid | None, device: torch.device
    ) -> Bool[Tensor, "patches patches"]:
        """Return which patches touch; of several grids, those of one."""
        rows, columns = grid or (math.isqrt(patches), math.isqrt(patches))
        links = adjacent((rows, columns), device)
        grids = patches // (rows * columns)
        return links if grids == 1 else torch.block_diag(*[links] * grids)

    def propagate(
        self,
        x: Float[Tensor, "batch tokens dim"],
        stay: Int[Tensor, "batch kept"],
        leave: Int[Tensor, "batch leaving"],
        carry: Carry,
    ) -> tuple[Float[Tensor, "batch after dim"], Carry]:
        """Return the tokens that stay, with what those that leave hand them, and what to hand to the next block."""
        if self.propagation == "mean":
            return self._fuse(x, stay, leave, carry)
        kept = gather_tokens(x, stay)
        if "graph" not in carry:
            return kept, keep_left(carry, x, stay)
        graph, places = carry["graph"], carry.get("places")
        if places is None:  # all tokens are where they were
            places = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        to = places.gather(1, stay)
        weights = _between(graph, places.gather(1, leave), to)
        kept += weights.mT @ gather_tokens(x, leave)
        handed = {"graph": graph, "places": to, **keep_left(carry, x, stay)}
        if self.token_scale:
            scale = _scale(carry, x)
            received = (scale.gather(1, leave)[..., None] * weights).sum(1)
            handed["scale"] = scale.gather(1, stay) + received
        return kept, handed

    def _fuse(
        self, x: Tensor, stay: Tensor, leave: Tensor, carry: Carry
    ) -> tuple[Float[Tensor, "batch after dim"], Carry]:
        """Propagate as above, into one new token at the end."""
        mean = gather_tokens(x, leave).mean(1, keepdim=True)
        fused = torch.cat([gather_tokens(x, stay), mean], 1)
        handed = keep_left(carry, x, stay, added=1)
        if self.token_scale:
            scale = _scale(carry, x)
            summed = scale.gather(1, leave).sum(1, keepdim=True)
            handed["scale"] = torch.cat([scale.gather(1, stay), summed], 1)
        return fused, handed

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"leaving={self.leaving}, theta={self.theta:g}, alpha={self.alpha:g}, selection={self.selection}, "
            f"propagation={self.propagation}, graph={self.graph}, neighbours={self.neighbours}"
        )


def ranked(score: Float[Tensor, "batch patches"]) -> Int[Tensor, "batch patches"]:
    """Return the patches' numbers, best first.

    Where theta leaves nothing of what speaks for patches they are equal; then the first comes first, in any runtime:
    so the exported TopK has it, while torch's promises no order.
    """
    if torch.compiler.is_exporting():
        return score.topk(score.shape[1]).indices
    return score.sort(dim=1, descending=True, stable=True).indices


def largest(
    weights: Float[Tensor, "batch heads queries keys"], share: float
) -> Float[Tensor, "batch heads queries keys"]:
    """Set the smallest attention weights of each head to zero.

    Args:
        weights: attention weights; given up, where no gradient is asked for.
        share: how many to leave, of all queries and keys together.
    """
    count = weights.shape[2] * weights.shape[3]
    smaller = int(count * (1 - share))
    if smaller == 0:
        return weights
    threshold = kth_smallest(weights.detach().flatten(2), smaller)[..., None, None]
    if torch.is_grad_enabled() or recording():
        return torch.where(weights >= threshold, weights, 0.0)
    mask = torch.empty_like(weights)  # a mask of floats takes half the time of one of booleans
    return torch.ge(weights, threshold, out=mask).mul_(weights)


def kth_smallest(
    values: Float[Tensor, "batch heads count"], k: int
) -> Float[Tensor, "batch heads"]:
    """Return the k-th smallest value, from 1.

    On a processor NumPy's vectorised selection takes a tenth of the time of torch's.
    """
    vectorised = values.device.type == "cpu" and values.dtype == torch.float32
    if vectorised and not recording():
        return torch.from_numpy(np.partition(values.numpy(), k - 1, axis=-1)[..., k - 1].copy())
    return values.topk(values.shape[-1] - k + 1, sorted=False).values.amin(-1)


def adjacent(grid: Grid, device: torch.device) -> Bool[Tensor, "patches patches"]:
    """Tell which patches of a grid of rows and columns touch, at a side or a corner."""
    place = torch.arange(grid[0] * grid[1], device=device)
    rows, columns = place // grid[1], place % grid[1]
    down = (rows[:, None] - rows).abs()
    across = (columns[:, None] - columns).abs()
    return torch.maximum(down, across) == 1


def similar(
    patches: Float[Tensor, "batch patches dim"], neighbours: int
) -> Bool[Tensor, "batch patches patches"]:
    """Tell for each patch (row) which ``neighbours`` others are most like it, by their cosine."""
    unit = F.normalize(patches, dim=-1)
    cosine = unit @ unit.mT
    nearest = min(neighbours + 1, cosine.shape[-1])  # a patch is its own nearest
    threshold = cosine.topk(nearest, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    itself = torch.eye(cosine.shape[-1], dtype=torch.bool, device=cosine.device)
    return (cosine >= threshold) & ~itself


def normalised(
    links: Float[Tensor, "batch patches patches"],
) -> Float[Tensor, "batch patches patches"]:
    """Return D^-1/2 A D^-1/2 with the rows' degrees in D."""
    root = links.sum(-1).clamp(min=1).rsqrt()  # a patch without links has none to divide
    return root[..., None] * links * root[:, None]


def _between(
    graph: Float[Tensor, "#batch all all"],
    at: Int[Tensor, "batch leaving"],
    to: Int[Tensor, "batch kept"],
) -> Float[Tensor, "batch leaving kept"]:
    """Return the graph's weights from some places to others."""
    rows = graph[0][at] if graph.shape[0] == 1 else gather_tokens(graph, at)
    return rows.gather(2, to[:, None].expand(-1, at.shape[1], -1))


def _scale(carry: Carry, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens"]:
    return carry["scale"] if "scale" in carry else x.new_ones(x.shape[:2])


def install(
    model: nn.Module,
    *,
    leaving: float | Sequence[float] = 0.041,
    theta: float = 0.6,
    alpha: float = 0.1,
    neighbours: int = 4,
    selection: str = "mixed_max",
    propagation: str = "graph",
    graph: str = "mixed",
    token_scale: bool = True,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Let patches leave in every block of ``model``, and hand themselves on.

    Args:
        model: a model whose tokens may lose their places.
        leaving: P, how many patches leave; below 1, their share of the patches of an image of the model's size. One
            for all blocks, or one each.
        theta: share of the attention weights that count, above 0 and up to 1, which leaves attention as it is.
        alpha: factor of what is handed on; 0 prunes.
        neighbours: M, how many patches each is linked with by content.
        selection: what speaks for a patch: attention of the class token to it (``class``), of all tokens (``image``),
            of itself (``diagonal``), the product (``mixed``) or sum (``sum``) of the last two, or how little its own
            attention is like that of others (``cosine``); with ``_mean`` or ``_max`` over the heads. Or ``random``.
        propagation: to linked patches (``graph``), into one new token (``mean``), or ``none``.
        graph: links by place (``spatial``), by content (``semantic``) or both (``mixed``).
        token_scale: count what each token has received, and let it weigh as much as a key.
        seed: of a random choice in evaluation.

    Returns:
        The blocks, and how many tokens they take in and hand on.

    Raises:
        ModelError: another kind of model, settings out of range, or no patch would be left.
    """
    network = trunk(model, "gtp_vit", class_token=selection.startswith("class"))
    depth, patches = len(network.blocks), network.patches
    _check(theta, alpha, neighbours, selection, propagation, graph)
    counts = [_leaving(value, patches) for value in per_block(leaving, depth, "gtp_vit", "leaving")]
    reducers = {
        number: Propagation(
            count,
            network.prefix,
            neighbours=neighbours,
            theta=theta,
            alpha=alpha,
            selection=selection,
            propagation=propagation,
            token_scale=token_scale,
            graph=graph,
            seed=depth * seed + number,
        )
        for number, count in enumerate(counts)
    }
    if sum(counts) - (propagation == "mean") * sum(n > 0 for n in counts) >= patches:
        raise ModelError(
            f"The {depth} blocks of 'gtp_vit' would remove {sum(counts)} of {patches} patches.",
            f"Remove at most {(patches - 1) // depth} per block.",
        )
    put(network, reducers)
    return rows(model, network, reducers)


def _leaving(value: float, patches: int) -> int:
    """Return how many patches leave."""
    if value < 0 or (value > 1 and value != int(value)):
        raise ModelError(
            f"'gtp_vit' cannot remove {value:g} patches.",
            "Give an integer, or a fraction below 1.",
        )
    return int(value) if value >= 1 or value == 0 else max(1, round(value * patches))


def _check(
    theta: float, alpha: float, neighbours: int, selection: str, propagation: str, graph: str
) -> None:
    if not 0 < theta <= 1:
        raise ModelError(
            f"theta = {theta:g} is out of range.",
            "Use a value above 0, at most 1.",
        )
    if not 0 <= alpha <= 1:
        raise ModelError(f"alpha = {alpha:g} is out of range.", "Use a factor from 0 to 1.")
    if neighbours < 1:
        raise ModelError(
            f"neighbours = {neighbours} is out of range.", "Use 1 or more, or graph='spatial'."
        )
    for what, value, known in (
        ("selection", selection, SELECTIONS),
        ("propagation", propagation, PROPAGATIONS),
        ("graph", graph, GRAPHS),
    ):
        if value not in known:
            raise ModelError(f"'gtp_vit' has no {what} '{value}'.", did_you_mean(value, known))


def from_reference(
    state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]
) -> VisionTransformer:
    """Build the model from the arguments of the authors' GraphPropagationTransformer and load their weights."""
    model = vit.from_reference(state_dict, kwargs)
    selection = _reference_selection(kwargs.get("selection", "None"))
    graph = kwargs.get("graph_type", "None")
    install(
        model,
        leaving=kwargs.get("num_prop", 0) if selection else 0,
        theta=kwargs.get("sparsity", 1),
        alpha=kwargs.get("alpha", 0.1),
        neighbours=max(1, kwargs.get("num_neighbours", 0)),
        selection=selection or "mixed_max",
        propagation={"GraphProp": "graph"}.get(
            name := kwargs.get("propagation", "None"), name.lower()
        ),
        graph="spatial" if graph == "None" else graph.lower(),
        token_scale=kwargs.get("token_scale", False),
    )
    return model


def _reference_selection(name: str) -> str:
    """Translate the authors' name of a selection; "" where nothing is selected."""
    if name == "None":
        return ""
    kinds = {"CLSAttn": "class", "IMGAttn": "image", "DiagAttn": "diagonal", "MixedAttn": "mixed"}
    kinds |= {"SumAttn": "sum", "CosSim": "cosine"}
    for theirs, ours in kinds.items():
        if name.startswith(theirs):
            return f"{ours}_{name.removeprefix(theirs).lower()}"
    return name.lower()
